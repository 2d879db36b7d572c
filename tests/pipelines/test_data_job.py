"""A job that goes on looks into the files it finds, not at their names."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ajepa import storage
from ajepa.shards.schema import OK
from ajepa.shards.writer import shard_path
from pipelines.jobs import finetune, preprocess, pretrain
from pipelines.pretrain import PretrainArgs
from pipelines.rayjobs.data_job import unfinished


@pytest.fixture
def output(small_dataset, tmp_path):
    """Two shards of 20 clips as a job left them."""
    return Path(shutil.copytree(small_dataset.path, tmp_path / "shards"))


def todo(dataset, output, blocks=3):
    """With the clips of the first two blocks twice, so that there is a third one."""
    ids = dataset.read_columns(["clip_id"])["clip_id"]
    paths = [shard_path(str(output), OK, i) for i in range(blocks)]
    return unfinished(str(output), paths, [20] * blocks, lambda: ids, "shards")


def test_whole_blocks_are_finished(small_dataset, output, capsys):
    assert todo(small_dataset, output) == [2]
    assert capsys.readouterr().out == "resuming: 2 of 3 shards are finished\n"


def test_nothing_is_read_where_nothing_is_there(tmp_path):
    assert unfinished(str(tmp_path), ["a/0.parquet", "a/1.parquet"], [1, 1], None, "parts") == [0, 1]


def shorter(path):
    pq.write_table(pq.read_table(path).slice(0, 19), path)


def twice_the_same(path):
    table = pq.read_table(path)
    pq.write_table(table.take([0, *range(19)]), path)


def of_another_plan(path):
    shutil.copy(path.with_name("shard-00000.parquet"), path)


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [shorter, twice_the_same, of_another_plan, torn, empty])
def test_a_file_that_does_not_hold_its_clips_is_made_again(small_dataset, output, capsys, damage):
    damage(output / OK / "shard-00001.parquet")
    assert todo(small_dataset, output) == [1, 2]
    out = capsys.readouterr().out
    assert "note: made again, as they do not hold the clips of the plan: shard-00001.parquet\n" in out
    assert "resuming: 1 of 3 shards" in out


@pytest.mark.parametrize("name", ["run.json.77.tmp", "run.json.0a1b2c3d4e5f.tmp"])
def test_a_run_killed_before_its_first_file_stood_starts_anew(small_dataset, tmp_path, name):
    args = PretrainArgs(data=small_dataset.path, output=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{")
    assert pretrain.prepare_output(args, small_dataset) is None
    assert finetune.prepare_output(args.output, {}, overwrite=False) is None


def test_labels_that_no_good_clip_has_are_named(small_dataset, build_dataset, tmp_path):
    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))[:2]
    clips = [{"clip_id": s.stem, "uri": str(s), "labels": [i]} for i, s in enumerate(sounds)]
    clips.append({"clip_id": "broken", "uri": str(tmp_path / "gone.wav"), "labels": [2]})
    dataset = build_dataset(
        tmp_path / "d", clips, shard_size=3, front_end=small_dataset.front_end, label_names=["a", "b", "broken", "none"]
    )
    assert preprocess.empty_classes(dataset) == ["no good clip has the label 'broken', 'none'"]
    assert preprocess.empty_classes(small_dataset) == []


def test_temporary_files_of_two_processes_differ(tmp_path):
    """In two containers on a shared volume both may have the same number."""
    with storage.atomic_output(str(tmp_path / "a")) as one, storage.atomic_output(str(tmp_path / "a")) as other:
        one.write(b"one")
        other.write(b"other")
        assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "a").read_text() == "one"
