"""Merging: what comes out is the dataset made in one go, whatever happened on the way; what cannot go is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.merge import merge_datasets
from ajepa.shards.schema import BAD, OK, ROW_GROUP, ok_schema
from ajepa.shards.verify import verify_dataset

CONFIG = FrontEndConfig(clip_frames=64, n_mels=64)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("merge")


@pytest.fixture(scope="module")
def clips(root, write_wav):
    """24 good clips of many lengths and levels, labelled by NAMES; every eighth is followed by a bad one."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(24):
        uri = write_wav(root / f"{i:02d}.wav", generator.uniform(-0.5, 0.5, 1_600 * (1 + i % 8)) * 0.7**i)
        labels = [NAMES[i % 3], NAMES[(i + 1) % 3]] if i % 4 else []
        rows.append({"clip_id": f"clip{i:02d}", "uri": uri, "labels": labels, "fold": 1 + i % 5, "split": "train"})
        if i % 8 == 0:
            rows.append({"clip_id": f"gone{i:02d}", "uri": str(root / f"gone{i}.wav"), "labels": [NAMES[i % 3]]})
    return rows


@pytest.fixture(scope="module")
def build(root, clips, build_dataset):
    """build(name, slice, label names) makes a dataset of some of the clips."""

    def build(name, part, label_names=NAMES, front_end=CONFIG, shard_size=5):
        rows = [clip | {"labels": [label_names.index(n) for n in clip["labels"]]} for clip in clips[part]]
        return build_dataset(
            root / name, rows, shard_size=shard_size, front_end=front_end, label_names=list(label_names)
        )

    return build


@pytest.fixture(scope="module")
def whole(build):
    return build("whole", slice(None), shard_size=7)


@pytest.fixture(scope="module")
def parts(build):
    """The clips of `whole` in three datasets, whose labels have other numbers; the first knows them all."""
    return [
        build("first", slice(0, 9)).path,
        build("second", slice(9, 21), ["c", "a", "b"]).path,
        build("third", slice(21, None), ["b", "c", "a"]).path,
    ]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "merged"


def merge(paths, output):
    return sum(merge_datasets(paths, str(output)))


def rows(path, status, columns):
    """Rows of a dataset by clip id."""
    files = sorted((Path(path) / status).iterdir())
    found = [row for file in files for row in pq.ParquetFile(file).read(columns=["clip_id", *columns]).to_pylist()]
    return {row.pop("clip_id"): row for row in found}


def assert_is(path, expected):
    """Bit for bit."""
    merged = open_dataset(str(path))
    np.testing.assert_array_equal(merged.statistics.mean, expected.statistics.mean)
    np.testing.assert_array_equal(merged.statistics.std, expected.statistics.std)
    assert merged.statistics.frames == expected.statistics.frames
    assert merged.content_hash == expected.content_hash
    assert merged.label_names == expected.label_names
    assert merged.info["counts"] == expected.info["counts"]
    for status, columns in ((OK, ["labels", "digest", "log_mel", "bin_sum"]), (BAD, ["labels", "uri", "error"])):
        assert rows(path, status, columns) == rows(expected.path, status, columns)


def test_three_are_the_dataset_made_in_one_go(parts, whole, output):
    assert merge(parts, output) == whole.num_clips
    assert_is(output, whole)
    assert sum(verify_dataset(str(output))) == whole.num_clips
    assert sorted(p.name for p in output.iterdir()) == ["dataset.json", BAD, OK]


def test_the_order_of_the_inputs_does_not_matter_where_labels_agree(build, whole, output, tmp_path):
    parts = [build(f"same{i}", part).path for i, part in enumerate([slice(0, 13), slice(13, None)])]
    for name, paths in (("one", parts), ("other", parts[::-1])):
        merge(paths, tmp_path / name)
        assert_is(tmp_path / name, whole)


def test_uris_are_inputs_and_output(parts, whole, output):
    merge([f"file://{p}" for p in parts], f"file://{output}")
    assert_is(output, whole)


def test_a_merged_dataset_can_be_merged(parts, whole, output, tmp_path):
    merge(parts[:2], tmp_path / "two")
    merge([str(tmp_path / "two"), parts[2]], output)
    assert_is(output, whole)


def test_new_labels_come_after_those_of_the_first(build, root, build_dataset, output):
    wav = str(root / "05.wav")
    one = build_dataset(
        root / "xy",
        [{"clip_id": "1", "uri": wav, "labels": [1]}],
        shard_size=5,
        front_end=CONFIG,
        label_names=["x", "y"],
    )
    clips = [{"clip_id": "2", "uri": wav, "labels": [0, 1]}, {"clip_id": "3", "uri": wav + "?", "labels": [2]}]
    two = build_dataset(root / "zyw", clips, shard_size=5, front_end=CONFIG, label_names=["z", "y", "w"])
    merge([one.path, two.path], output)
    assert open_dataset(str(output)).label_names == ("x", "y", "z", "w")
    assert rows(output, OK, ["labels"]) == {"1": {"labels": [1]}, "2": {"labels": [2, 1]}}
    assert rows(output, BAD, ["labels"]) == {"3": {"labels": [3]}}


def test_bad_rows_keep_their_shard(parts, output):
    merge(parts, output)
    for file in (output / BAD).iterdir():
        assert (output / OK / file.name).exists()
    inputs = [file for part in parts for file in sorted((Path(part) / OK).iterdir())]
    for number, file in enumerate(inputs):
        mine, theirs = output / BAD / f"shard-{number:05d}.parquet", file.parents[1] / BAD / file.name
        assert mine.exists() == theirs.exists()
        if mine.exists():
            assert pq.ParquetFile(mine).read(["clip_id"]) == pq.ParquetFile(theirs).read(["clip_id"])


def test_where_labels_agree_shards_have_the_same_bytes(build, output):
    """So the layout, the metadata and the row groups are those of the writer."""
    parts = [build(f"bytes{i}", part).path for i, part in enumerate([slice(0, 10), slice(10, 20)])]
    merge(parts, output)
    for status in (OK, BAD):
        first = sorted((Path(parts[0]) / status).iterdir())
        assert all(file.read_bytes() == (output / status / file.name).read_bytes() for file in first)


def test_row_groups_are_kept(root, build_dataset, output):
    uris = [str(root / f"{i:02d}.wav") for i in range(24)]
    paths = []
    for name, count in (("large", 2 * ROW_GROUP + 3), ("small", 2)):
        clips = [{"clip_id": f"{name}{i}", "uri": uris[i % 24]} for i in range(count)]
        paths.append(build_dataset(root / name, clips, shard_size=500, front_end=CONFIG, label_names=[]).path)
    assert list(merge_datasets(paths, str(output))) == [ROW_GROUP, ROW_GROUP, 3, 2]
    file = pq.ParquetFile(output / OK / "shard-00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [ROW_GROUP, ROW_GROUP, 3]
    assert file.schema_arrow.metadata == ok_schema(CONFIG).metadata


def test_a_shard_without_good_clips_is_merged(build, root, build_dataset, output):
    clips = [{"clip_id": n, "uri": str(root / n)} for n in ("no1", "no2")] + [
        {"clip_id": "yes", "uri": str(root / "03.wav")}
    ]
    odd = build_dataset(root / "odd", clips, shard_size=2, front_end=CONFIG, label_names=[])
    assert merge([odd.path, build("some", slice(5, 7)).path], output) == 3
    assert open_dataset(str(output)).num_failed == 2
    assert sum(verify_dataset(str(output))) == 3


def test_the_inputs_are_recorded(parts, output):
    merge(parts, output)
    assert open_dataset(str(output)).info["merged"] == [
        {"path": d.path, "content_hash": d.content_hash, "ok": d.num_clips, "bad": d.num_failed}
        for d in map(open_dataset, parts)
    ]


def test_fewer_than_two_are_refused(parts, output):
    with pytest.raises(UserError, match="at least two datasets, got 1"):
        merge(parts[:1], output)


def test_one_dataset_twice_is_refused(parts, output):
    with pytest.raises(UserError, match="is given twice"):
        merge([parts[0], f"file://{parts[0]}/"], output)


def test_other_front_ends_are_refused_by_name(parts, build, output):
    other = build("other", slice(21, None), front_end=FrontEndConfig(clip_frames=32, n_mels=64, f_max=7_000.0))
    with pytest.raises(UserError, match=r"clip_frames: 64 -> 32; f_max: 8000.0 -> 7000.0"):
        merge([parts[0], other.path], output)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (slice(8, 12), r"1 clip ids .*'clip07'"),
        (slice(0, 12), r"9 clip ids .*\('clip00', 'clip01', 'clip02', \.\.\.\)"),
        (slice(1, None, 12), r"1 clip ids .*'gone00'"),  # a bad row
    ],
)
def test_clips_in_two_datasets_are_refused_before_anything_is_written(parts, build, output, part, match):
    overlapping = build(f"overlap{part.start}-{part.stop}", part)
    with pytest.raises(UserError, match=match):
        merge([parts[0], overlapping.path], output)
    assert not output.exists()


def test_an_output_in_an_input_is_refused(parts):
    for output in (parts[1], f"{parts[1]}/sub", f"file://{parts[1]}/../second"):
        with pytest.raises(UserError, match="lies in the input"):
            merge(parts, output)
    assert open_dataset(parts[1]).num_clips
    assert merge(parts[:2], f"{parts[1]}-merged")  # beside it is not in it


def test_an_output_with_something_else_is_refused(parts, output, tmp_path, whole):
    output.mkdir()
    (output / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        merge(parts, output)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        merge(parts, tmp_path / "file")
    with pytest.raises(UserError, match="holds another finished dataset"):
        merge(parts, whole.path)


def test_an_unfinished_dataset_is_refused(parts, output, tmp_path):
    unfinished = shutil.copytree(parts[1], tmp_path / "unfinished")
    (unfinished / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        merge([parts[0], str(unfinished)], output)


def test_an_empty_output_folder_is_taken(parts, whole, output):
    output.mkdir()
    merge(parts, output)
    assert_is(output, whole)


@pytest.mark.parametrize("groups", range(7))
def test_interrupted_anywhere_the_same_call_goes_on(parts, whole, output, groups):
    job = merge_datasets(parts, str(output))
    written = [next(job) for _ in range(groups)]
    job.close()
    assert not (output / "dataset.json").exists()
    if groups:  # and as a process that was killed leaves things
        for name in (f"{OK}/shard-00002.parquet", f"{BAD}/shard-00000.parquet", "_plan/merge.json", "dataset.json"):
            (output / f"{name}.123.tmp").write_bytes(b"half")
    shards = sorted(path for path in output.glob(f"{OK}/*.parquet"))
    assert len(shards) == max(0, groups - 1)  # each is one row group here
    times = []
    for shard in shards:
        os.utime(shard, (1, 1))
        times.append((shard.stat().st_mtime_ns, shard.stat().st_ino))
    again = list(merge_datasets(parts, str(output)))
    assert again[: len(written)] == written
    assert sum(again) == whole.num_clips
    assert [(shard.stat().st_mtime_ns, shard.stat().st_ino) for shard in shards] == times
    assert_is(output, whole)
    assert sum(verify_dataset(str(output))) == whole.num_clips
    assert not list(output.rglob("*.tmp"))


def test_another_merge_into_an_unfinished_one_is_refused(parts, output):
    next(merge_datasets(parts, str(output)))
    for other in (parts[:2], parts[::-1]):
        with pytest.raises(UserError, match="holds an unfinished merge of other datasets"):
            merge(other, output)


def test_an_input_that_changed_in_between_is_refused(parts, build, output, tmp_path):
    first = shutil.copytree(parts[0], tmp_path / "first")
    next(merge_datasets([str(first), parts[1]], str(output)))
    shutil.rmtree(first)
    shutil.copytree(build("otherwise", slice(0, 9), shard_size=4).path, first)  # same content in other shards
    with pytest.raises(UserError, match="before they changed"):
        merge([str(first), parts[1]], output)


def test_a_finished_merge_does_nothing_again(parts, output):
    merge(parts, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert list(merge_datasets(parts, str(output))) == []
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    with pytest.raises(UserError, match="holds another finished dataset"):
        merge(parts[:2], output)


def test_a_plan_left_by_a_finished_merge_is_deleted(parts, output):
    merge(parts, output)
    (output / "_plan").mkdir()
    (output / "_plan/merge.json").write_text(json.dumps(open_dataset(str(output)).info["plan"]))
    assert list(merge_datasets(parts, str(output))) == []
    assert not (output / "_plan").exists()


def rot(folder, change, number=0):
    """Rewrite the rows of one shard with one of them changed in place."""
    path = sorted((folder / OK).iterdir())[number]
    table = pq.ParquetFile(path).read()
    found = table.to_pylist()
    change(found[2])
    pq.write_table(table.from_pylist(found, table.schema), path, compression="none")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(log_mel=r["log_mel"][:-1] + b"x"), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(log_mel=None), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(digest=None), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(labels=[1, 7]), "label 7 has no name"),
    ],
)
def test_a_rotten_row_is_named_and_the_merge_goes_on_once_it_is_mended(parts, whole, output, tmp_path, change, match):
    copy = shutil.copytree(parts[1], tmp_path / "second")
    rot(copy, change, 1)
    paths = [parts[0], str(copy), parts[2]]
    with pytest.raises(UserError, match=rf"second/status=ok/shard-00001\.parquet.*{match}"):
        merge(paths, output)
    assert len(list(output.glob(f"{OK}/*"))) == 3
    shutil.copytree(parts[1], copy, dirs_exist_ok=True)
    merge(paths, output)
    assert_is(output, whole)


@pytest.mark.parametrize("status", [OK, BAD])
def test_a_shard_that_is_gone_is_named(parts, output, tmp_path, status):
    copy = shutil.copytree(parts[0], tmp_path / "first")
    (copy / status / "shard-00000.parquet").unlink()
    with pytest.raises(UserError, match=rf"{copy}.*make that dataset again"):
        merge([str(copy), parts[1]], output)
    assert not output.exists()


def test_a_shard_cut_short_is_named(parts, output, tmp_path):
    copy = shutil.copytree(parts[0], tmp_path / "first")
    path = copy / OK / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{copy}.*cannot be read"):
        merge([str(copy), parts[1]], output)
