"""Archives whose clips are called otherwise once others lie beside them: a dataset that grows has each clip once."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.containers import FRONT_END, Sound, audio, flac, make_shards, members, parquet, tar

from ajepa.audio.segments import segment
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError
from ajepa.shards.append import APPEND_JSON, find_new, finish_append, next_shard
from ajepa.shards.writer import write_shard

COUNT = 5


def sounds(seed, seconds=0.3):
    return [Sound(str(i), flac(100 * seed + i, seconds), (f"label {i}",)) for i in range(COUNT)]


def grow(dataset, manifest):
    """What the job does, without Ray."""
    new = find_new(dataset, manifest)
    plan = {"clips": new.clips.num_rows, "first_shard": next_shard(dataset), "shards": 1,
            "label_names": new.label_names}  # fmt: skip
    Path(dataset.path, "_plan").mkdir()
    Path(dataset.path, APPEND_JSON).write_text(json.dumps(plan))
    write_shard(new.clips, plan["first_shard"], dataset.path, FRONT_END)
    grown = finish_append(dataset, plan, {"remarks": []})
    shutil.rmtree(Path(dataset.path, "_plan"))
    return new, grown


def ids(dataset):
    return sorted(dataset.read_columns(["clip_id"])["clip_id"].to_pylist())


def test_clips_of_an_archive_keep_their_ids_when_others_join_it(tmp_path):
    """Whichever comes first by name, and however many."""
    folder = tmp_path / "in"
    tar(folder / "m.tar", members(sounds(0)))
    dataset = make_shards(load_manifest("webdataset", str(folder)), tmp_path / "shards")
    wanted = [str(i) for i in range(COUNT)]
    for seed, name in enumerate(("z", "a"), 1):
        tar(folder / f"{name}.tar", members(sounds(seed)))
        new, dataset = grow(dataset, load_manifest("webdataset", str(folder)))
        wanted = sorted([*wanted, *(f"{name}/{i}" for i in range(COUNT))])
        assert ids(dataset) == wanted and new.known == COUNT * seed
        assert new.remarks == (
            f"{COUNT} clips have other ids in this source than in the dataset, at the same places ('m/0' is '0'): they "
            "keep those of the dataset",
        )
    for names in ("m", "z", "a", "[az]", "*"):
        again = find_new(dataset, load_manifest("webdataset", f"{folder}/{names}.tar"))
        assert again.clips.num_rows == 0, names


def test_pieces_of_recordings_keep_theirs_and_other_cuts_are_refused(tmp_path):
    folder = tmp_path / "in"
    tar(folder / "m.tar", members(sounds(0, 0.9)))

    def cut(seconds):
        manifest = load_manifest("webdataset", str(folder))
        return segment(manifest, seconds, "pad", FRONT_END) if seconds else manifest

    cut_before, whole_before = (make_shards(cut(s), tmp_path / f"shards {s}") for s in (0.4, None))
    tar(folder / "z.tar", members(sounds(1, 0.9)))
    new = find_new(cut_before, cut(0.4))
    assert new.known == 3 * COUNT and new.clips["clip_id"].to_pylist()[:2] == ["z/0#00000", "z/0#00001"]
    for dataset, seconds in ((cut_before, None), (cut_before, 0.3), (whole_before, 0.4)):
        with pytest.raises(UserError, match="cut from recordings that the dataset holds, in another way"):
            find_new(dataset, cut(seconds))


def test_rows_of_parquet_files_keep_theirs_when_a_column_names_no_row_on_its_own_any_more(tmp_path):
    def write(name, seed):
        clips = sounds(seed)
        return parquet(tmp_path / f"in/{name}.parquet", {"id": [c.id for c in clips], "audio": audio(clips)}, group=2)

    write("m", 0)
    dataset = make_shards(load_manifest("parquet", str(tmp_path / "in")), tmp_path / "shards")
    assert ids(dataset) == [str(i) for i in range(COUNT)]
    write("a", 1)
    new, dataset = grow(dataset, load_manifest("parquet", str(tmp_path / "in")))
    assert new.known == COUNT
    assert ids(dataset) == sorted([*(str(i) for i in range(COUNT)), *(f"a.parquet#{i:06d}" for i in range(COUNT))])


def test_a_file_that_was_written_anew_with_ids_of_its_own_has_new_clips(tmp_path):
    """At the places of the old ones: where a column names them, places say nothing."""
    path = tmp_path / "today.parquet"

    def write(day):
        clips = sounds(day)
        parquet(path, {"id": [f"day {day} {c.id}" for c in clips], "audio": audio(clips)})
        return load_manifest("parquet", str(path))

    dataset = make_shards(write(1), tmp_path / "shards")
    assert find_new(dataset, write(2)).clips.num_rows == COUNT


def test_shards_of_the_first_version_say_no_places(tmp_path):
    tar(tmp_path / "in/m.tar", members(sounds(0)))
    dataset = make_shards(load_manifest("webdataset", str(tmp_path / "in")), tmp_path / "shards")
    for path in Path(dataset.path).glob("status=ok/*.parquet"):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.drop_columns(["locator"]), path)
    assert find_new(dataset, load_manifest("webdataset", str(tmp_path / "in"))).clips.num_rows == 0
