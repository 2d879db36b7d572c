"""dataset.json: what it counts, what it checks, and the folders that are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ajepa import storage
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import finish_dataset, open_dataset
from ajepa.shards.schema import BAD, OK

CONFIG = FrontEndConfig(clip_frames=64)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_wav):
    """13 good clips, some longer than 64 frames, and 2 bad ones."""
    root = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(13):
        uri = write_wav(root / f"{i:02d}.wav", generator.uniform(-0.5, 0.5, 1_600 * (1 + i % 8)) * 0.5**i)
        rows.append({"clip_id": f"clip{i:02d}", "uri": uri, "labels": [i % 2], "fold": 1 + i % 5})
    (root / "empty.wav").write_bytes(b"")
    return [
        *rows,
        {"clip_id": "empty", "uri": str(root / "empty.wav")},
        {"clip_id": "gone", "uri": str(root / "gone.wav")},
    ]


@pytest.fixture
def build(tmp_path, build_dataset, clips):
    def build(name="shards", clips=clips, shard_size=5, front_end=CONFIG, label_names=("a", "b")):
        return build_dataset(
            tmp_path / name, clips, shard_size=shard_size, front_end=front_end, label_names=list(label_names)
        )

    return build


@pytest.fixture(scope="module")
def whole(tmp_path_factory, build_dataset, clips):
    """All clips in three shards. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    return build_dataset(folder / "shards", clips, shard_size=5, front_end=CONFIG, label_names=["a", "b"])


@pytest.fixture
def dataset(whole, tmp_path):
    """A copy of its own for each test."""
    return open_dataset(str(shutil.copytree(whole.path, tmp_path / "shards")))


def valid_frames(dataset):
    """[n_mels, frames] float64 of all clips."""
    parts = [
        log_mel[:, :valid].astype(np.float64)
        for log_mels, num_frames in dataset.iter_log_mels()
        for log_mel, valid in zip(log_mels, num_frames, strict=True)
    ]
    return np.concatenate(parts, axis=1)


def test_clips_are_counted(whole):
    assert (whole.num_clips, whole.num_failed) == (13, 2)
    assert whole.info["counts"]["bad_by_stage"] == {"decode": 1, "read": 1}


def test_shards_are_listed_with_their_rows(whole):
    assert [(shard.name, shard.rows) for shard in whole.shards] == [
        (f"{OK}/shard-00000.parquet", 5),
        (f"{OK}/shard-00001.parquet", 5),
        (f"{OK}/shard-00002.parquet", 3),
    ]


def test_statistics_are_those_of_the_valid_frames(whole):
    frames = valid_frames(whole)
    np.testing.assert_allclose(whole.statistics.mean, frames.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(whole.statistics.std, frames.std(axis=1), rtol=1e-9)


def test_hours_are_those_of_the_valid_frames(whole):
    assert whole.statistics.frames == valid_frames(whole).shape[1]
    assert whole.hours == pytest.approx(whole.statistics.frames * 0.01 / 3600)


def test_opened_again_it_is_the_same(whole):
    again = open_dataset(whole.path)
    assert (again.front_end, again.label_names, again.shards) == (CONFIG, ("a", "b"), whole.shards)
    np.testing.assert_array_equal(again.statistics.mean, whole.statistics.mean)
    np.testing.assert_array_equal(again.statistics.std, whole.statistics.std)


def test_a_uri_opens_the_same_dataset(build, tmp_path):
    dataset = build("with spaces")
    again = open_dataset((tmp_path / "with spaces").as_uri())
    assert again.content_hash == dataset.content_hash
    assert again.read_columns(["clip_id"]).equals(dataset.read_columns(["clip_id"]))


def test_columns_come_in_storage_order(whole, clips):
    assert whole.read_columns(["clip_id"])["clip_id"].to_pylist() == [clip["clip_id"] for clip in clips[:13]]


@pytest.mark.parametrize("shard_size", [1, 4, 13, 40])
def test_the_shard_size_changes_neither_hash_nor_statistics(whole, build, shard_size):
    one, other = whole, build(shard_size=shard_size)
    assert one.content_hash == other.content_hash
    assert one.statistics.mean.tobytes() == other.statistics.mean.tobytes()
    assert one.statistics.std.tobytes() == other.statistics.std.tobytes()


def test_the_order_of_the_clips_changes_neither_hash_nor_statistics(whole, build, clips):
    one, other = whole, build(clips=clips[::-1])
    assert one.content_hash == other.content_hash
    assert one.statistics.mean.tobytes() == other.statistics.mean.tobytes()


def test_other_content_has_another_hash(whole, build, clips):
    relabelled = [clips[0] | {"labels": [1]}, *clips[1:]]
    refolded = [clips[0] | {"fold": 4}, *clips[1:]]
    swapped = [clips[0] | {"uri": clips[1]["uri"]}, *clips[1:]]
    datasets = [
        whole, build("1", relabelled), build("2", refolded), build("3", swapped), build("4", clips[1:]),
        build("5", front_end=FrontEndConfig(clip_frames=80)), build("6", label_names=("a", "c")),
    ]  # fmt: skip
    assert len({dataset.content_hash for dataset in datasets}) == len(datasets)
    other_clips = [dataset for dataset in datasets if dataset.path != datasets[3].path]
    assert len({dataset.clips_hash for dataset in other_clips}) == len(other_clips)


def test_the_hash_of_the_clips_does_not_depend_on_the_bits_of_log_mels(whole, build, clips, tmp_path):
    """Other kinds of CPU round some values of the same sound otherwise: here it is a little louder."""
    louder = []
    for clip in clips[:13]:
        samples, rate = soundfile.read(clip["uri"])
        soundfile.write(tmp_path / Path(clip["uri"]).name, samples * 1.001, rate)
        louder.append(clip | {"uri": str(tmp_path / Path(clip["uri"]).name)})
    other = build("louder", louder)
    assert other.content_hash != whole.content_hash and other.clips_hash == whole.clips_hash


def test_extra_facts_are_stored(dataset):
    finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {"plan": {"input": "here"}})
    assert open_dataset(dataset.path).info["plan"] == {"input": "here"}


def test_a_missing_shard_is_noticed(dataset):
    storage.delete(storage.join(dataset.path, dataset.shards[1].name))
    with pytest.raises(UserError, match="8 ok and 2 bad rows, 10 distinct ids, for 15 clips"):
        finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {})


def test_a_missing_reject_is_noticed(dataset):
    storage.delete(storage.join(dataset.path, BAD))
    with pytest.raises(UserError, match="13 ok and 0 bad rows"):
        finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {})


def test_a_shard_that_is_there_twice_is_noticed(dataset):
    shutil.copy(f"{dataset.path}/{OK}/shard-00000.parquet", f"{dataset.path}/{OK}/shard-00009.parquet")
    with pytest.raises(UserError, match="18 ok and 2 bad rows, 15 distinct ids"):
        finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {})


def test_a_copy_cannot_stand_in_for_a_missing_shard(dataset):
    shutil.copy(f"{dataset.path}/{OK}/shard-00000.parquet", f"{dataset.path}/{OK}/shard-00001.parquet")
    with pytest.raises(UserError, match="10 distinct ids"):
        finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {})


def test_leftovers_of_a_killed_worker_are_swept_away(dataset, tmp_path):
    (tmp_path / "shards" / OK / "shard-00001.parquet.123.tmp").write_bytes(b"half a shard")
    again = finish_dataset(dataset.path, CONFIG, ["a", "b"], 15, {})
    assert again.content_hash == dataset.content_hash
    assert not list((tmp_path / "shards").rglob("*.tmp"))


def test_not_one_readable_clip_is_a_users_mistake(build, clips):
    with pytest.raises(UserError, match="not one of 2 clips could be read"):
        build(clips=clips[13:])


def test_an_unfinished_folder_says_how_to_go_on(dataset, tmp_path):
    (tmp_path / "shards/dataset.json").unlink()
    with pytest.raises(UserError, match="run the same preprocess command again"):
        open_dataset(str(tmp_path / "shards"))


def test_another_contract_version_is_refused(dataset, tmp_path):
    (tmp_path / "shards/dataset.json").write_text(json.dumps(dataset.info | {"contract_version": 99}))
    with pytest.raises(UserError, match="follows shard contract 99, this version reads 2"):
        open_dataset(dataset.path)


def test_settings_of_another_version_are_refused(dataset, tmp_path):
    front_end = dataset.info["front_end"] | {"preemphasis": 0.97}
    (tmp_path / "shards/dataset.json").write_text(json.dumps(dataset.info | {"front_end": front_end}))
    with pytest.raises(UserError, match=r"FrontEndConfig written by another version: unknown \['preemphasis'\]"):
        open_dataset(dataset.path)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b'{"contract_version": 1', b"{}", b"[]", b"null", b"\xff\xfe\x00"]
)
def test_a_damaged_dataset_json_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        open_dataset(str(tmp_path))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(str(tmp_path / "none"))


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="is a file, a folder is needed"):
        open_dataset(str(tmp_path / "file"))
