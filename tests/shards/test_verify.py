"""Verification: a good dataset passes whole, and each kind of rot is named by shard, row and clip."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajepa.errors import UserError
from ajepa.shards.schema import ROW_GROUP
from ajepa.shards.verify import verify_dataset


@pytest.fixture
def copy(small_dataset, tmp_path):
    return Path(shutil.copytree(small_dataset.path, tmp_path / "shards"))


def change(copy: Path, row: int, **values) -> str:
    """Rewrite one row of the last shard with other values; returns its clip id."""
    path = sorted((copy / "status=ok").iterdir())[-1]
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[row] |= {k: v(rows[row]) for k, v in values.items()}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path, row_group_size=ROW_GROUP, compression="none")
    return rows[row]["clip_id"]


def edit(copy: Path, change_info) -> None:
    info = json.loads((copy / "dataset.json").read_text())
    change_info(info)
    (copy / "dataset.json").write_text(json.dumps(info))


def test_a_good_dataset_passes(small_dataset):
    assert sum(verify_dataset(small_dataset.path)) == small_dataset.num_clips


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"log_mel": lambda r: r["log_mel"][:-1] + b"x"}, "does not match its digest"),
        ({"log_mel": lambda r: r["log_mel"][:-2]}, "does not match its digest"),
        ({"digest": lambda r: "0" * 32}, "does not match its digest"),
        ({"num_frames": lambda r: 0}, "0 valid frames of 256"),
        ({"num_frames": lambda r: 257}, "257 valid frames of 256"),
        ({"bin_sum": lambda r: [v + 1 for v in r["bin_sum"]]}, "bin_sum is not that of its log_mel"),
    ],
)
def test_a_rotten_row_is_named(copy, values, match):
    clip = change(copy, 3, **values)
    with pytest.raises(UserError, match=rf"shard-00001\.parquet, row 3, clip '{clip}': .*{match}"):
        list(verify_dataset(str(copy)))


def test_values_that_are_not_finite_are_named(copy):
    import hashlib

    def poison(row):
        values = np.frombuffer(row["log_mel"], "<f2").copy()
        values[0] = np.nan
        return values.tobytes()

    def digest(row):
        return hashlib.blake2b(poison(row), digest_size=16).hexdigest()

    change(copy, 0, digest=digest, log_mel=poison)
    with pytest.raises(UserError, match=r"row 0, .*not finite"):
        list(verify_dataset(str(copy)))


@pytest.mark.parametrize("how", ["deleted", "truncated", "added", "short"])
def test_rotten_files_are_named(copy, how):
    path = sorted((copy / "status=ok").iterdir())[0]
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif how == "added":
        shutil.copy(path, path.with_name("shard-99999.parquet"))
    else:
        table = pq.read_table(path)
        pq.write_table(table.slice(1), path, row_group_size=ROW_GROUP)
    match = {"deleted": "missing", "truncated": "cannot be read", "added": "not listed", "short": "dataset.json says"}
    with pytest.raises(UserError, match=match[how]):
        list(verify_dataset(str(copy)))


@pytest.mark.parametrize(
    ("rot", "match"),
    [
        (lambda i: i["statistics"]["mean"].__setitem__(0, 0.0), "the mean in dataset.json"),
        (lambda i: i["statistics"]["std"].__setitem__(5, 9.0), "the std in dataset.json"),
        (lambda i: i.update(content_hash="0" * 32), "the content hash in dataset.json"),
        (lambda i: i["counts"].update(ok=1), "for 1 clips"),
    ],
)
def test_a_rotten_dataset_json_is_named(copy, rot, match):
    edit(copy, rot)
    with pytest.raises(UserError, match=match):
        list(verify_dataset(str(copy)))
