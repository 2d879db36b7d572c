"""Copies and silent clips: found by what is stored, and moved to the bad rows with the same result however it ends."""

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajepa import storage
from ajepa.audio.logmel import LogMel
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import finish_dataset
from ajepa.shards.duplicates import COLUMNS, Copy, dropped_for, find_copies, find_in, move_to_bad, reason, silent_digest
from ajepa.shards.files import find_incomplete, read_shards
from ajepa.shards.reader import ShardReader
from ajepa.shards.schema import BAD, OK
from ajepa.shards.verify import verify_dataset
from ajepa.shards.writer import make_row, write_shard

CONFIG = FrontEndConfig(n_mels=16, clip_frames=32)
CLIP = {"start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}
SOUNDS = {  # clip id to the sound it holds; a/b is the group of c, too
    "a": 1, "b": 1, "c": 1, "d": 2, "e": 3, "f": 3, "zero": 0, "nought": 0, "x": 4, "gone": None,
}  # fmt: skip
DROPPED = {"b": "a", "c": "a", "f": "e"}


def rows(**clips):
    """COLUMNS of clips, each given as digest or (digest, split, fold)."""
    full = [(name, *(v if isinstance(v, tuple) else (v, "", -1))) for name, v in clips.items()]
    return pa.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in full])


def found(*shards, first=()):
    return find_copies([(f"{i}", shard) for i, shard in enumerate(shards)], CONFIG, first)


@pytest.mark.parametrize("epsilon", [1e-10, 1e-6, 1e-2])
@pytest.mark.parametrize(
    ("samples", "rate", "silent"),
    [
        (np.zeros(44_100), 44_100, True),
        (np.zeros((4_000, 2)), 8_000, True),
        (np.zeros(1), 16_000, True),  # shorter than a window
        (np.full(16_000, 0.5), 16_000, False),  # a constant has a mel bin at 0 Hz
        (np.r_[np.zeros(3_000), 0.5, np.zeros(2_000)], 16_000, False),
    ],
    ids=["resampled", "stereo", "short", "constant", "click"],
)
def test_silent_is_what_digital_zero_gives(samples, rate, silent, epsilon, write_wav, tmp_path):
    config = FrontEndConfig(n_mels=16, clip_frames=32, log_epsilon=epsilon)
    uri = write_wav(tmp_path / "clip.wav", samples, rate)
    row, _ = make_row(CLIP | {"clip_id": "clip", "uri": uri}, LogMel(config))
    assert (row["digest"] == silent_digest(config)) is silent


def test_the_smallest_id_is_the_one_that_the_others_copy():
    copies, _ = found(rows(b="1", z="2"), rows(c="1", a="1", y="3"))
    assert [(c.clip_id, c.copy_of, c.shard) for c in copies] == [("b", "a", "0"), ("c", "a", "1")]


def test_clips_of_the_first_shards_are_copied_whatever_their_ids():
    copies, _ = found(rows(x="1", y="1"), rows(a="1", b="2"), first={"0"})
    assert [(c.clip_id, c.copy_of) for c in copies] == [("a", "x"), ("y", "x")]


def test_silent_clips_are_no_copies():
    silent = silent_digest(CONFIG)
    assert found(rows(a=silent, b="1"), rows(c=silent)) == ([], ["a", "c"])


def test_copies_in_another_split_or_fold_are_told():
    shard = rows(a=("1", "train", 1), b=("1", "train", 1), c=("1", "test", 1), d=("1", "train", 2))
    assert [c.elsewhere for c in found(shard)[0]] == [False, True, True]


def test_no_shards_have_no_copies():
    assert found() == ([], [])


@pytest.mark.parametrize("clip_id", ["a b.wav", "it's", "both \" and '", "line\nbreak", "鳥"])
def test_a_reason_names_any_clip(clip_id):
    assert dropped_for(reason(clip_id)) == clip_id
    assert reason("a").partition(":")[0] == "duplicate"


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_wav):
    root = tmp_path_factory.mktemp("sounds")
    waves = {n: 0.1 * n * np.random.default_rng(n).uniform(-1, 1, 4_000) for n in range(5)}
    uris = {n: write_wav(root / f"{n}.wav", wave) for n, wave in waves.items()}
    clips = [
        CLIP | {"clip_id": name, "uri": uris.get(number, str(root / "gone")), "split": ("train", "test")[name == "f"]}
        for name, number in SOUNDS.items()
    ]
    return pa.Table.from_pylist(clips, MANIFEST_SCHEMA)


def make(output, clips, size, silent="keep"):
    """The shards of a job."""
    for status in (OK, BAD):
        storage.make_folder(storage.join(str(output), status))
    for index, start in enumerate(range(0, len(clips), size)):
        write_shard(clips.slice(start, size), index, str(output), CONFIG, silent)


def drop(output):
    for copy in find_copies(read_shards(str(output), OK, COLUMNS), CONFIG)[0]:
        move_to_bad(str(output), copy.shard, {copy.clip_id: reason(copy.copy_of)})


@pytest.mark.parametrize("size", [2, 3, 20])
def test_dropped_they_leave_the_same_dataset_whatever_the_shards(size, clips, tmp_path):
    make(tmp_path, clips, size)
    drop(tmp_path)
    dataset = finish_dataset(str(tmp_path), CONFIG, [], len(clips), {})
    assert dataset.info["counts"]["bad_by_stage"] == {"duplicate": 3, "read": 1}
    found = find_in(dataset)
    assert {c.clip_id: c.copy_of for c in found.copies} == DROPPED and not any(c.shard for c in found.copies)
    assert found.elsewhere == 1 and found.silent == ["nought", "zero"]
    assert sum(verify_dataset(dataset.path)) == dataset.num_clips == len(clips) - 4
    make(tmp_path / "other", clips.filter(~np.isin(clips["clip_id"].to_numpy(), list(DROPPED))), 4)
    assert finish_dataset(str(tmp_path / "other"), CONFIG, [], 7, {}).content_hash == dataset.content_hash


def test_silent_clips_are_dropped_when_they_are_made(clips, tmp_path):
    make(tmp_path, clips, 4, "drop")
    dataset = finish_dataset(str(tmp_path), CONFIG, [], len(clips), {})
    assert dataset.info["counts"]["bad_by_stage"] == {"read": 1, "silent": 2}
    assert find_in(dataset).dropped_silent == ["nought", "zero"]


def test_without_dropping_they_are_only_named(clips, tmp_path):
    make(tmp_path, clips, 4)
    found = find_in(finish_dataset(str(tmp_path), CONFIG, [], len(clips), {}))
    assert found.copies[-1] == Copy("f", "test", -1, "e", "train", -1, "shard-00001.parquet")
    assert [c.clip_id for c in found.copies] == ["b", "c", "f"] and found.silent == ["nought", "zero"]


class KilledError(BaseException):
    pass


def files(output):
    return {p.relative_to(output): p.read_bytes() for p in output.rglob("*.parquet")}


@pytest.mark.parametrize("write", [0, 1])
def test_killed_between_two_files_a_shard_is_made_again_and_ends_the_same(write, clips, tmp_path, monkeypatch):
    name, reasons = "shard-00000.parquet", {"b": reason("a"), "c": reason("a")}
    for folder in ("killed", "whole"):
        make(tmp_path / folder, clips, 20)
    move_to_bad(str(tmp_path / "whole"), name, reasons)
    atomic, count = storage.atomic_output, iter(range(9))

    @contextlib.contextmanager
    def killed(path):
        with atomic(path) as stream:
            yield stream
            if next(count) == write:
                raise KilledError

    output = str(tmp_path / "killed")
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(storage, "atomic_output", killed)
        move_to_bad(output, name, reasons)
    ids = clips["clip_id"].to_pylist()
    assert find_incomplete(output, [(name, ids)]) == ([name] if write else [])
    make(tmp_path / "killed", clips, 20)
    move_to_bad(output, name, reasons)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    move_to_bad(output, name, reasons)  # and once more
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_row_groups_keep_their_size(write_wav, tmp_path):
    """Readers compute a row's place from it."""
    uris = [write_wav(tmp_path / f"{i}.wav", np.random.default_rng(i).uniform(-1, 1, 2_000)) for i in range(150)]
    clips = pa.Table.from_pylist([CLIP | {"clip_id": f"{i:03d}", "uri": uris[i]} for i in range(150)], MANIFEST_SCHEMA)
    make(tmp_path / "out", clips, 150)
    move_to_bad(str(tmp_path / "out"), "shard-00000.parquet", {f"{i:03d}": reason("149") for i in (0, 1, 70, 148)})
    parquet = pq.ParquetFile(tmp_path / "out" / OK / "shard-00000.parquet")
    assert [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)] == [64, 64, 18]
    assert b"ajepa.log_mel" in parquet.schema_arrow.metadata
    dataset = finish_dataset(str(tmp_path / "out"), CONFIG, [], 150, {})
    reader = ShardReader(dataset, crop_frames=16, batch_size=146, seed=0)
    assert reader.batch(0).log_mel.shape[0] == 146


def test_a_shard_of_copies_alone_is_left_without_rows(clips, tmp_path):
    make(tmp_path, clips.slice(1, 2), 2)
    move_to_bad(str(tmp_path), "shard-00000.parquet", {"b": reason("a"), "c": reason("a")})
    assert pq.read_metadata(tmp_path / OK / "shard-00000.parquet").num_rows == 0
    bad = pq.read_table(tmp_path / BAD / "shard-00000.parquet").to_pylist()
    assert [row["error"] for row in bad] == ["duplicate: of 'a'"] * 2


def test_a_damaged_shard_is_named(clips, tmp_path):
    make(tmp_path, clips, 20)
    shard = tmp_path / OK / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"shard-00000.parquet: cannot be read.*Delete this file"):
        move_to_bad(str(tmp_path), shard.name, {"b": reason("a")})
