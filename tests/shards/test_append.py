"""A dataset that grows: what is new in a source, the end that one job would have come to, and what an unfinished
addition leaves readable."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.merged import CONFIG, merge, rows

from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.errors import UserError
from ajepa.shards.append import (
    APPEND_JSON,
    find_new,
    finish_append,
    is_appended,
    next_shard,
    read_plan,
    refuse_unlisted,
    relabel,
    settings,
)
from ajepa.shards.dataset import open_dataset
from ajepa.shards.schema import BAD, OK
from ajepa.shards.verify import verify_dataset
from ajepa.shards.writer import write_shard

SIZE = 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_wav):
    """14 good clips, labelled a and b by turns, the last two c; the third and the tenth are bad."""
    root = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    found = []
    for i in range(14):
        wave = generator.uniform(-0.5, 0.5, 1_600 * (1 + i % 5))
        uri = write_wav(root / f"{i:02d}.wav", wave) if i not in (2, 9) else str(root / "gone.wav")
        names = ["c"] if i > 11 else ["ab"[i % 2]]
        found.append({"clip_id": f"clip{i:02d}", "uri": uri, "labels": names, "split": "train", "fold": i % 3})
    return found


def number(clips, names):
    defaults = {"start_s": 0.0, "duration_s": None}
    return [defaults | clip | {"labels": [names.index(name) for name in clip["labels"]]} for clip in clips]


def source(clips, names=None):
    """Clips as a source lists them: with the ids of its own labels."""
    names = names or sorted({name for clip in clips for name in clip["labels"]})
    return Manifest(pa.Table.from_pylist(number(clips, names), MANIFEST_SCHEMA), list(names))


@pytest.fixture
def build(tmp_path, build_dataset):
    def build(clips, name="shards", names=("a", "b"), size=SIZE):
        return build_dataset(
            tmp_path / name, number(clips, list(names)), shard_size=size, front_end=CONFIG, label_names=list(names)
        )

    return build


def begin(dataset, manifest):
    """A job's plan beside the dataset, and what is new."""
    new = find_new(dataset, manifest)
    plan = {
        "clips": new.clips.num_rows, "first_shard": next_shard(dataset), "shards": -(-new.clips.num_rows // SIZE),
        "label_names": new.label_names,
    }  # fmt: skip
    Path(dataset.path, "_plan").mkdir()
    Path(dataset.path, APPEND_JSON).write_text(json.dumps(plan))
    return new, plan


def write(dataset, new, plan, shards=None):
    for index in range(plan["shards"] if shards is None else shards):
        write_shard(new.clips.slice(SIZE * index, SIZE), plan["first_shard"] + index, dataset.path, CONFIG)


def grow(dataset, manifest):
    new, plan = begin(dataset, manifest)
    write(dataset, new, plan)
    grown = finish_append(dataset, plan, {"remarks": []})
    shutil.rmtree(Path(dataset.path, "_plan"))
    return grown


def test_what_the_dataset_has_is_known_good_or_bad(build, clips):
    new = find_new(build(clips[:6]), source(clips[:12]))
    assert new.clips["clip_id"].to_pylist() == [f"clip{i:02d}" for i in range(6, 12)]
    assert (new.known, new.known_bad, new.remarks) == (6, 1, ())
    assert new.counted == "6 clips of the source are known (1 of them bad: not tried again), 6 new"


@pytest.mark.parametrize("parts", [(6, 12), (1, 2, 12), (3, 11, 12)])
def test_grown_in_parts_it_is_the_dataset_of_all_clips(build, clips, parts):
    """Counts, statistics and hash, bit for bit; in one part all new clips are bad."""
    whole = build(clips[:12], "whole", size=5)
    dataset = build(clips[: parts[0]])
    for stop in parts[1:]:
        dataset = grow(dataset, source(clips[:stop]))
    assert dataset.content_hash == whole.content_hash
    assert dataset.info["counts"] == whole.info["counts"]
    assert (dataset.statistics.mean == whole.statistics.mean).all()
    assert (dataset.statistics.std == whole.statistics.std).all()
    assert sum(verify_dataset(dataset.path)) == whole.num_clips
    columns = ["labels", "uri"]
    assert all(rows(dataset.path, s, columns) == rows(whole.path, s, columns) for s in (OK, BAD))


def test_clips_of_another_folder_alone_do_as_well(build, clips):
    grown = grow(build(clips[:6]), source(clips[6:12]))
    assert grown.content_hash == build(clips[:12], "whole").content_hash


def test_new_labels_come_after_the_old_ones_as_in_a_merge(build, clips, tmp_path):
    """The hash is that of one job where its labels have this order."""
    later = grow(build(clips[:6], "later"), source(clips))
    assert later.label_names == ("a", "b", "c")
    assert later.content_hash == build(clips, "whole", names=("a", "b", "c")).content_hash
    tail = [clip | {"labels": ["0", *clip["labels"]]} for clip in clips[6:12]]
    grown = grow(build(clips[:6]), source(tail))
    assert grown.label_names == ("a", "b", "0")
    assert rows(grown.path, OK, ["labels"])["clip07"] == {"labels": [2, 1]}
    first, second = build(clips[:6], "first"), build(tail, "second", names=("0", "a", "b"))
    merge([first.path, second.path], tmp_path / "merged")
    assert grown.content_hash == open_dataset(str(tmp_path / "merged")).content_hash
    assert grown.content_hash != build([*clips[:6], *tail], "sorted", names=("0", "a", "b")).content_hash


def test_labels_of_a_slice_are_numbered_anew():
    column = pa.chunked_array([pa.array([[9], [0, 1], [], [1]], pa.list_(pa.int32())).slice(1), [[2, 0]]])
    assert relabel(column, [5, 6, 7]).to_pylist() == [[5, 6], [], [6], [7, 5]]


def test_an_unfinished_addition_leaves_the_dataset_as_it_was(build, clips):
    dataset = build(clips[:6])
    before = {p: p.read_bytes() for p in Path(dataset.path).rglob("*") if p.is_file()}
    new, plan = begin(dataset, source(clips[:12]))
    write(dataset, new, plan, 1)
    half = Path(dataset.path, OK, "shard-00003.parquet.0123456789ab.tmp")
    half.write_bytes(b"half a shard")
    assert sum(verify_dataset(dataset.path)) == dataset.num_clips
    assert open_dataset(dataset.path).info == dataset.info and len(list(dataset.bad_tables(["clip_id"]))) == 1
    write(dataset, new, plan)
    grown = finish_append(dataset, plan, {})
    assert not half.exists() and is_appended(grown, read_plan(grown.path))
    assert {p: p.read_bytes() for p in before if p.name != "dataset.json"} == {
        p: content for p, content in before.items() if p.name != "dataset.json"
    }
    assert sum(verify_dataset(dataset.path)) == grown.num_clips
    assert len(dataset.read_columns(["clip_id"])) == dataset.num_clips  # a reader that opened the old dataset.json


def test_other_files_are_refused_all_the_same(build, clips):
    dataset = build(clips[:6])
    _, plan = begin(dataset, source(clips[:12]))
    odd = Path(dataset.path, OK, f"shard-{plan['first_shard'] + plan['shards']:05d}.parquet")
    odd.write_bytes(b"none of the plan")
    with pytest.raises(UserError, match=rf"{odd.name} is not listed in dataset.json"):
        list(verify_dataset(dataset.path))
    with pytest.raises(UserError, match=rf"{odd.name} is not listed in dataset.json: delete what is not"):
        refuse_unlisted(dataset)


def test_a_damaged_plan_is_named(build, clips):
    dataset = build(clips[:6])
    begin(dataset, source(clips[:12]))
    Path(dataset.path, APPEND_JSON).write_text('{"first_shard": "2"')
    with pytest.raises(UserError, match=r"append.json' is damaged.*delete"):
        list(verify_dataset(dataset.path))


def test_a_damaged_old_shard_is_not_to_be_deleted(build, clips):
    """As the new ones are, which the job makes again."""
    dataset = build(clips[:6])
    new, plan = begin(dataset, source(clips[:12]))
    write(dataset, new, plan)
    Path(dataset.path, OK, "shard-00000.parquet").write_bytes(b"rot")
    with pytest.raises(UserError, match=r"shard-00000.parquet: cannot be read.*Restore the shard"):
        finish_append(dataset, plan, {})
    shutil.copy(Path(dataset.path, OK, "shard-00001.parquet"), Path(dataset.path, OK, "shard-00000.parquet"))
    with pytest.raises(UserError, match="undo what was changed there while the job ran"):
        finish_append(dataset, plan, {})


def test_bad_rows_that_are_gone_are_refused(build, clips):
    """Their clips would be taken for new ones."""
    dataset = build(clips[:6])
    shutil.rmtree(Path(dataset.path, BAD))
    with pytest.raises(UserError, match=r"0 rows in status=bad, dataset.json says 1: restore them"):
        find_new(dataset, source(clips[:12]))


def test_known_clips_of_which_the_source_says_something_else_are_named(build, clips):
    dataset = build(clips[:6])
    changed = [clip | {"uri": f"/moved{clip['uri']}"} for clip in clips[:3]]
    changed += [clips[3] | {"labels": ["a"]}, clips[4] | {"fold": 9}, *clips[5:8]]
    moved, other = find_new(dataset, source(changed)).remarks
    assert moved.startswith("3 known clips lie at another place in this source ('clip00')")
    assert other == (
        "2 known clips have another split, fold or labels in this source ('clip03'): the dataset keeps its own"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"r#00000": 0.0, "r#00001": 10.0}, {"r#00000": 0.0, "r#00001": 5.0}),
        ({"r": 0.0}, {"r#00000": 0.0, "r#00001": 10.0}),
        ({"r#00000": 0.0, "r#00001": 10.0}, {"r": 0.0}),
    ],
    ids=["length", "now", "before"],
)
def test_recordings_that_are_cut_otherwise_are_refused(old, new, build, clips):
    """Their clips would overlap with those that are there."""
    cut = [[clips[0] | {"clip_id": name, "start_s": start} for name, start in part.items()] for part in (old, new)]
    with pytest.raises(UserError, match=r"in another way \('r.*'\): give --segment as for the dataset"):
        find_new(build([*cut[0], clips[1]]), source(cut[1]))


def test_settings_are_those_of_the_last_job(build, clips, tmp_path):
    dataset = build(clips[:6])
    assert settings(dataset.path) == {"front_end": CONFIG, "duplicates": "keep", "silent": "keep"}
    new, plan = begin(dataset, source(clips[:12]))
    write(dataset, new, plan)
    finish_append(dataset, plan | {"duplicates": "drop", "silent": "keep"}, {})
    assert settings(dataset.path)["duplicates"] == "drop"
    assert settings(str(tmp_path / "nothing")) == {}
