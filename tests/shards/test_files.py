"""Reading the files of a shard folder: a damaged one is named, with what to do; a store that is away is no damage."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajepa import retries, storage
from ajepa.errors import UserError
from ajepa.shards import files
from ajepa.shards.dataset import finish_dataset, open_dataset
from ajepa.shards.files import READ_AHEAD, damaged_part, damaged_shard, read_columns, read_shards

SHARD = "status=ok/shard-00001.parquet"


@pytest.fixture
def copied(small_dataset, tmp_path):
    """A copy of the small dataset."""
    shutil.copytree(small_dataset.path, tmp_path / "shards")
    return open_dataset(str(tmp_path / "shards"))


def overwrite(dataset, content: bytes) -> None:
    with storage.atomic_output(storage.join(dataset.path, SHARD)) as stream:
        stream.write(content)


def other_columns() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x00" * 5000, other_columns()])
@pytest.mark.parametrize(
    "read", [lambda d: d.read_columns(["labels"]), lambda d: d.clips_hash, lambda d: [*d.iter_log_mels()]]
)
def test_a_damaged_shard_of_a_finished_dataset_is_named(copied, content, read):
    overwrite(copied, content)
    with pytest.raises(UserError, match=f"{SHARD}: cannot be read.*Restore the shard.*--overwrite"):
        read(copied)


def test_a_shard_cut_within_a_column_is_named(copied):
    """Its footer is whole, and says where the columns lie."""
    path = storage.join(copied.path, SHARD)
    with storage.open_input(path) as stream:
        content = stream.read()
    end = int.from_bytes(content[-8:-4], "little") + 8
    overwrite(copied, content[:1000] + content[-end:])
    for read in (lambda: copied.read_columns(["digest"]), lambda: [*copied.iter_log_mels()]):
        with pytest.raises(UserError, match=f"{SHARD}: cannot be read"):
            read()


def test_a_shard_with_other_rows_than_the_dataset_says_is_named(copied):
    table = pq.read_table(storage.join(copied.path, SHARD)).slice(3)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    overwrite(copied, sink.getvalue().to_pybytes())
    with pytest.raises(UserError, match=f"{SHARD}: 17 rows, dataset.json says 20"):
        copied.read_columns(["fold"])


def test_a_shard_that_dataset_json_does_not_list_is_not_read(copied):
    """As everything else that reads rows, which has them by their numbers."""
    with storage.atomic_output(storage.join(copied.path, "status=ok/shard-00000b.parquet")) as stream:
        stream.write(b"stray")
    assert len(copied.read_columns(["fold"])) == 40


def test_a_damaged_part_of_an_unfinished_job_is_deleted_and_made_again(copied):
    overwrite(copied, b"torn")
    with pytest.raises(UserError, match=f"{SHARD}: cannot be read.*Delete this file, then run the same command again"):
        finish_dataset(copied.path, copied.front_end, list(copied.label_names), 40, {})


@pytest.mark.parametrize("damaged", [damaged_shard, damaged_part])
def test_a_store_that_is_away_is_no_damage(copied, monkeypatch, damaged):
    def away(path):
        raise OSError("When reading: curl error 7")

    monkeypatch.setattr(retries, "WAITS", (0.0,))
    monkeypatch.setattr(storage, "is_local", lambda path: False)
    monkeypatch.setattr(storage, "open_input", away)
    with pytest.raises(storage.UnreachableError, match="cannot reach"):
        list(read_columns("s3://bucket/shards", [SHARD], ["fold"], damaged))


def test_more_shards_than_are_read_ahead_come_in_order(copied, monkeypatch):
    monkeypatch.setattr(files, "READ_AHEAD", 1)
    names = [name for name, _ in read_shards(copied.path, "status=ok", ["clip_id"])]
    assert names == ["shard-00000.parquet", "shard-00001.parquet"] and READ_AHEAD > 1


@pytest.mark.parametrize(
    "change",
    [
        {"shards": ["a"]},
        {"shards": 3},
        {"counts": []},
        {"counts": {"ok": "many"}},
        {"label_names": None},
        {"statistics": []},
    ],
)
def test_a_dataset_json_with_values_of_other_types_is_damaged(copied, change):
    with storage.atomic_output(storage.join(copied.path, "dataset.json")) as stream:
        stream.write(json.dumps(copied.info | change).encode())
    with pytest.raises(UserError, match=r"dataset\.json' is damaged"):
        open_dataset(copied.path)
