"""Merging: what comes out is the dataset made in one go, whatever happened on the way."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.merged import CONFIG, assert_is, merge, rows

from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.merge import merge_datasets
from ajepa.shards.schema import BAD, OK, ROW_GROUP, ok_schema
from ajepa.shards.verify import verify_dataset


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


def test_a_shorter_shard_at_the_output_is_copied_again(parts, whole, output):
    """As a write to a store that failed once left it."""
    job = merge_datasets(parts, str(output))
    [next(job) for _ in range(3)]
    job.close()
    shard = output / OK / "shard-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, table.num_rows - 1), shard)
    merge(parts, output)
    assert_is(output, whole)
    assert sum(verify_dataset(str(output))) == whole.num_clips
