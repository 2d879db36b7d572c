"""Sound in Parquet files, in the schemas that the Hub has: the same shards as from loose files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.container_layouts import NAMES, TABLE, audioset, class_table, common_voice, esc50, fsd50k
from helpers.containers import (
    AUDIO,
    FRONT_END,
    Sound,
    audio,
    bad_rows,
    flac,
    loose_dataset,
    make_shards,
    parquet,
    sounds,
)

from ajepa.audio.archives.parquet_rows import ParquetRows
from ajepa.audio.blocks import block_sizes
from ajepa.audio.segments import segment
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.verify import verify_dataset


def check_same(manifest, clips, folder) -> ShardDataset:
    """Made into shards and verified, a source equals the same clips as loose files."""
    dataset = make_shards(manifest, folder / "shards")
    assert sum(verify_dataset(dataset.path)) == len(clips)
    wanted = loose_dataset(folder, clips)
    assert dataset.content_hash == wanted.content_hash and dataset.label_names == wanted.label_names
    return dataset


def test_the_layout_of_audioset_on_the_hub(tmp_path):
    made = audioset(tmp_path / "in")
    manifest = load_manifest("parquet", made.path)
    assert any("--columns labels=human_labels" in remark for remark in manifest.remarks)
    check_same(manifest, made.clips, tmp_path)

    named = load_manifest("parquet", f"{audioset(tmp_path / 'named', table=True).path}/*/*.parquet")
    assert named.label_names == list(NAMES.values())
    assert named.clips["labels"].to_pylist()[:3] == [[2], [2, 0], []]

    class_table(tmp_path / "in/data" / TABLE, {"/m/05zppz": "Male"})
    with pytest.raises(UserError, match=r"'/m/09x0r' is not in .*class_labels_indices\.csv"):
        load_manifest("parquet", str(tmp_path / "in"))


def test_a_mirror_of_esc50(tmp_path):
    made = esc50(tmp_path / "in")
    manifest = load_manifest("parquet", made.path)
    assert manifest.label_names == ["dog", "rooster", "pig"]  # in the order of their targets
    assert manifest.clips["fold"].to_pylist() == [c.fold for c in made.clips]
    assert manifest.clips["split"].to_pylist() == ["train"] * len(made.clips)
    dataset = make_shards(manifest, tmp_path / "shards", size=4)
    assert dataset.num_clips == len(made.clips) and len(dataset.shards) == 1  # a row group is not cut


def test_several_labels_as_text_or_numbers(tmp_path):
    made = fsd50k(tmp_path / "text")
    check_same(load_manifest("parquet", made.path), made.clips, tmp_path)
    clips = sounds(6, lambda i: ["Bark", "Dog"] if i % 2 else ["Child_speech"])
    names = ["Bark", "Child_speech", "Dog", "Meow"]
    numbers = parquet(tmp_path / "b.parquet", {
        "id": [c.id for c in clips], "audio": audio(clips),
        "labels": [[names.index(label) for label in c.labels] for c in clips],
    }, features={"labels": {"_type": "List", "feature": {"_type": "ClassLabel", "names": names}}})  # fmt: skip
    manifest = load_manifest("parquet", numbers)
    assert manifest.label_names == names
    assert manifest.clips["labels"].to_pylist() == [[names.index(label) for label in c.labels] for c in clips]
    wrong = parquet(tmp_path / "c.parquet", {"id": ["a", "b"], "audio": audio(clips[:2]), "label": [0, 9]},
                    features={"label": {"_type": "ClassLabel", "names": names}})  # fmt: skip
    with pytest.raises(UserError, match="the label 9, the metadata names 4 classes"):
        load_manifest("parquet", wrong)


def test_paths_alone(tmp_path):
    made = common_voice(tmp_path / "in")
    manifest = load_manifest("parquet", made.path)
    assert manifest.clips["locator"].null_count == len(made.clips)  # plain files
    assert manifest.clips["clip_id"].to_pylist() == [clip.id for clip in made.clips]
    check_same(manifest, made.clips, tmp_path)
    plain = parquet(tmp_path / "in/b/test.parquet", {"path": [f"../{clip.id}" for clip in made.clips]})
    assert make_shards(load_manifest("parquet", plain), tmp_path / "plain").num_clips == len(made.clips)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_under_any_name(tmp_path, kind):
    clips = sounds(4)
    path = parquet(tmp_path / "a.parquet", {
        "key": [c.id for c in clips], "payload": pa.array([c.data for c in clips], kind),
        "kind": [c.labels[0] for c in clips], "subset": ["test"] * 4,
    })  # fmt: skip
    manifest = load_manifest("parquet", path, columns=["labels=kind"])
    assert manifest.clips["split"].to_pylist() == ["test"] * 4
    check_same(manifest, [Sound(c.id, c.data, c.labels, "test") for c in clips], tmp_path)


def test_rows_that_are_no_sound_are_named(tmp_path):
    clips = sounds(3)
    (tmp_path / "beside.flac").write_bytes(clips[0].data)
    path = parquet(tmp_path / "a.parquet", {
        "id": ["good", "nothing", "text", "beside", "elsewhere", "lies"],
        "audio": pa.array([
            {"bytes": clips[1].data, "path": None}, None, {"bytes": b"not sound", "path": "a.flac"},
            {"bytes": None, "path": "beside.flac"}, {"bytes": None, "path": "/mnt/other/a.flac"},
            {"bytes": clips[2].data, "path": "a.mp3"},
        ], AUDIO),
    }, group=3)  # fmt: skip
    dataset = make_shards(load_manifest("parquet", path), tmp_path / "shards")
    assert dataset.num_clips == 3
    reasons = bad_rows(dataset)
    assert set(reasons) == {"nothing", "text", "elsewhere"}
    assert "neither bytes nor a path" in reasons["nothing"] and "/mnt/other/a.flac" in reasons["elsewhere"]


def test_a_row_group_that_is_damaged_is_a_reason_of_its_rows(tmp_path):
    clips = sounds(9)
    path = tmp_path / "a.parquet"
    parquet(path, {"id": [c.id for c in clips], "audio": audio(clips)}, group=3)
    group = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "audio.bytes")
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset : chunk.dictionary_page_offset + 40] = bytes(40)
    path.write_bytes(data)
    dataset = make_shards(load_manifest("parquet", str(path)), tmp_path / "shards")
    assert dataset.num_clips == 6 and set(bad_rows(dataset)) == {c.id for c in clips[3:6]}
    assert all("row group 1 of the Parquet file" in reason for reason in bad_rows(dataset).values())


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as raised:
        load_manifest("parquet", str(path), **options)
    return str(raised.value)


def test_refusals(tmp_path):
    clips = sounds(4)
    good = {"id": [c.id for c in clips], "audio": audio(clips), "label": ["a"] * 4}
    parquet(tmp_path / "in/0.parquet", good)
    parquet(tmp_path / "in/2.parquet", good)
    middle = tmp_path / "in/1.parquet"
    middle.write_bytes((tmp_path / "in/0.parquet").read_bytes()[:-100])
    assert "1.parquet' cannot be read as Parquet" in refusal(tmp_path / "in")
    middle.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "pointer of Git LFS" in refusal(tmp_path / "in")
    parquet(middle, {"id": [1, 2], "audio": audio(clips[:2]), "label": ["a", "b"]})
    assert "the column 'id' of" in refusal(tmp_path / "in") and "int64" in refusal(tmp_path / "in")
    parquet(middle, {"id": ["x"], "audio": audio(clips[:1])})
    assert "has no column 'label', which the first file has" in refusal(tmp_path / "in")
    middle.unlink()
    assert "occur more than once" in refusal(tmp_path / "in", columns=["clip_id=label"])
    assert "no column 'nope'" in refusal(tmp_path / "in", columns=["audio=nope"])
    assert "none of our columns" in refusal(tmp_path / "in", columns=["sound=audio"])
    assert "give pairs" in refusal(tmp_path / "in", columns=["audio"])
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "no file fits" in refusal(tmp_path / "in/*.pq")
    (tmp_path / "empty").mkdir()
    assert "holds no Parquet files" in refusal(tmp_path / "empty")
    no_sound = parquet(tmp_path / "none.parquet", {"a": [1], "b": [2.0]})
    assert "no column of bytes, paths, or both" in refusal(no_sound)
    two = parquet(tmp_path / "two.parquet", {"mic": audio(clips), "line": audio(clips)})
    assert "several columns that may be the sound (mic, line)" in refusal(two)
    wrong = parquet(tmp_path / "wrong.parquet", {"audio": audio(clips), "label": [1.5] * 4})
    assert "the labels of 'label'" in refusal(wrong) and "double" in refusal(wrong)
    fold = parquet(tmp_path / "fold.parquet", {"audio": audio(clips), "fold": ["one"] * 4})
    assert "the column 'fold' is string" in refusal(fold)


def test_a_page_that_a_worker_cannot_hold_is_refused(tmp_path, monkeypatch):
    clips = [Sound(f"{i}", bytes(1000 + i), ()) for i in range(50)]
    monkeypatch.setattr("ajepa.audio.archives.parquet_source.MOST_PAGE", 40_000)
    columns = {"id": [c.id for c in clips], "audio": audio(clips)}
    said = refusal(parquet(tmp_path / "a.parquet", columns, group=50))
    assert "50 rows of 0.0 MB in a row group, in pages of 0.0 GB" in said and "row_group_size=" in said
    assert load_manifest("parquet", parquet(tmp_path / "b.parquet", columns, group=30)).clips.num_rows == 50


def test_planning_reads_no_sound(tmp_path, monkeypatch):
    clips = sounds(20)
    path = parquet(tmp_path / "a.parquet", {"id": [c.id for c in clips], "audio": audio(clips)}, group=5)
    read = []

    class Counted:
        def __init__(self, stream):
            self._stream = stream

        def __getattr__(self, name):
            return getattr(self._stream, name)

        def read(self, *given):
            data = self._stream.read(*given)
            read.append(len(data))
            return data

    open_input = pa.OSFile
    monkeypatch.setattr("ajepa.storage.open_input", lambda where: pa.PythonFile(Counted(open_input(where)), "r"))
    load_manifest("parquet", path)
    assert sum(read) < 0.5 * sum(len(c.data) for c in clips)


def test_each_row_group_is_read_once_and_memory_is_bounded(tmp_path, monkeypatch):
    clips = sounds(40)
    path = parquet(tmp_path / "a.parquet", {"id": [c.id for c in clips], "audio": audio(clips)}, group=10)
    rows = load_manifest("parquet", path).clips.to_pylist()
    began = []
    original = ParquetRows._rows
    monkeypatch.setattr(
        ParquetRows, "_rows", lambda self, group, last: began.append(group) or original(self, group, last)
    )
    monkeypatch.setattr("ajepa.audio.archives.parquet_rows.AHEAD", 3 * len(clips[0].data))
    reader = ParquetRows(rows)
    for row, clip in zip(rows, clips, strict=True):
        with reader.open(row) as stream:
            assert stream.read() == clip.data
        assert len(reader._found) <= 6
    reader.close()
    assert began == [(path, i) for i in range(4)]
    again = ParquetRows(rows)  # in any order
    for i in np.random.default_rng(0).permutation(40).tolist():
        with again.open(rows[i]) as stream:
            assert stream.read() == clips[i].data
    again.close()


@pytest.mark.parametrize(("group", "size", "wanted"), [
    (100, 250, [200, 200, 200]), (100, 50, [100] * 6), (400, 100, [400, 200]), (7, 20, [14] * 42 + [12]),
])  # fmt: skip
def test_blocks_end_where_row_groups_end(group, size, wanted, tmp_path):
    clips = [Sound(f"{i:04d}", b"", ()) for i in range(600)]
    path = parquet(tmp_path / "a.parquet", {"id": [c.id for c in clips], "audio": audio(clips)}, group=group)
    assert block_sizes(load_manifest("parquet", path).clips, size) == wanted


def test_a_large_row_group_is_cut_into_three(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"id": range(5000), "sound": pa.array([b""] * 5000)}, group=5000)
    manifest = load_manifest("parquet", path)
    assert block_sizes(manifest.clips, 500) == [1666, 1667, 1667]
    assert any("read up to 3 times" in remark for remark in manifest.remarks)


def test_damaged_metadata_is_not_needed(tmp_path):
    clips = sounds(2)
    table = pa.table({"id": [c.id for c in clips], "audio": audio(clips)})
    for text in ("{", json.dumps({"info": 3}), json.dumps({"info": {"features": [1]}})):
        pq.write_table(table.replace_schema_metadata({"huggingface": text}), tmp_path / "a.parquet")
        assert load_manifest("parquet", str(tmp_path / "a.parquet")).clips.num_rows == 2


@pytest.mark.parametrize("parts", [["bytes"], ["path"], ["path", "bytes"]])
def test_a_struct_with_its_parts_in_any_order(tmp_path, parts):
    clips = sounds(3)
    for clip in clips:
        (tmp_path / f"{clip.id}.flac").write_bytes(clip.data)
    kinds = {"bytes": pa.binary(), "path": pa.string()}
    rows = [{part: {"bytes": c.data, "path": f"{c.id}.flac"}[part] for part in parts} for c in clips]
    column = pa.array(rows, pa.struct([(part, kinds[part]) for part in parts]))
    path = parquet(
        tmp_path / "a.parquet", {"id": [c.id for c in clips], "audio": column, "label": [c.labels[0] for c in clips]}
    )
    check_same(load_manifest("parquet", path), clips, tmp_path)


def test_files_that_number_their_classes_otherwise(tmp_path):
    clips = sounds(2)
    for name, classes in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        columns = {"id": [f"{name}{i}" for i in range(2)], "audio": audio(clips), "label": [0, 1]}
        parquet(tmp_path / f"in/{name}.parquet", columns, features={"label": {"_type": "ClassLabel", "names": classes}})
    assert "numbers of other classes than in the first file" in refusal(tmp_path / "in")


def test_columns_of_pandas_and_of_other_writers(tmp_path):
    clips, named = sounds(4), ["clip_id=name"]
    ids = pa.array([c.id for c in clips])
    columns = {"name": ids.dictionary_encode(), "audio": audio(clips),
               "label": pa.array([c.labels[0] for c in clips]).dictionary_encode()}  # fmt: skip
    path = parquet(tmp_path / "a.parquet", columns)
    check_same(load_manifest("parquet", path, columns=named), clips, tmp_path)
    missing = {"name": pa.array(["a", None]), "audio": audio(clips[:2])}
    assert "1 rows have no id" in refusal(parquet(tmp_path / "b.parquet", missing), columns=named)
    double = {"name": [1.5, 2.5], "audio": audio(clips[:2])}
    assert "holds double, not texts" in refusal(parquet(tmp_path / "c.parquet", double), columns=named)
    blanks = {"id": ids, "audio": audio(clips), "category": [" dog", "dog;cat", "dog", "cat"], "target": [0, 1, 2, 3]}
    assert load_manifest("parquet", parquet(tmp_path / "d.parquet", blanks)).label_names == ["cat", "dog"]
    hub = {"id": ["a", "b"], "audio": pa.array([{"bytes": clips[0].data, "path": None},
                                                {"bytes": None, "path": "hf://datasets/x/a.flac"}], AUDIO)}  # fmt: skip
    dataset = make_shards(load_manifest("parquet", parquet(tmp_path / "e.parquet", hub)), tmp_path / "hub")
    assert "hf:// is not supported" in bad_rows(dataset)["b"]


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_pieces_of_rows_are_cut_from_one_reading(tmp_path, monkeypatch, kind):
    clips = [Sound(f"{i}", flac(i, 3.0, 16_000, kind), ()) for i in range(6)]
    path = parquet(tmp_path / "a.parquet", {"id": [c.id for c in clips], "audio": audio(clips)}, group=6)
    manifest = segment(load_manifest("parquet", path), 0.5, "drop", FRONT_END)
    began = []
    original = ParquetRows._rows
    monkeypatch.setattr(ParquetRows, "_rows", lambda self, *given: began.append(given) or original(self, *given))
    dataset = make_shards(manifest, tmp_path / "shards", size=100)
    assert dataset.num_clips == manifest.clips.num_rows >= 6 * 5
    assert len(began) == len(dataset.shards) == 1
