"""Manifests: what each source lists, what it leaves out, and the mistakes it names."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ajepa.audio.decode import decode
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError


def fill(root, *names):
    """Files of a few bytes: listing never opens the audio."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"sound")
    return str(root)


def refused(source, path, **options):
    with pytest.raises(UserError) as error:
        load_manifest(source, str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def column(manifest, name):
    return manifest.clips[name].to_pylist()


def test_a_folder_is_listed_with_its_subfolders(tmp_path):
    manifest = load_manifest("folder", fill(tmp_path, "b.wav", "a/x.mp3", "a/b/y.FLAC", "c d/ü.m4a"))
    assert column(manifest, "clip_id") == ["a/b/y.FLAC", "a/x.mp3", "b.wav", "c d/ü.m4a"]


def test_uris_of_a_folder_are_absolute(tmp_path, monkeypatch):
    fill(tmp_path, "sub/a.wav")
    monkeypatch.chdir(tmp_path)
    assert column(load_manifest("folder", "sub"), "uri") == [str(tmp_path / "sub/a.wav")]


def test_every_source_gives_the_manifest_schema(tmp_path):
    assert load_manifest("folder", fill(tmp_path, "a.wav")).clips.schema == MANIFEST_SCHEMA


def test_other_files_are_left_out_and_remarked(tmp_path):
    manifest = load_manifest("folder", fill(tmp_path, "a.wav", "notes.txt", "sub/cover.jpg"))
    assert column(manifest, "clip_id") == ["a.wav"]
    assert manifest.remarks == ("2 files without an audio extension left out",)


def test_nothing_left_out_needs_no_remark(tmp_path):
    assert load_manifest("folder", fill(tmp_path, "a.wav")).remarks == ()


def test_a_folder_gives_no_labels_unless_asked(tmp_path):
    manifest = load_manifest("folder", fill(tmp_path, "cat/a.wav"))
    assert (column(manifest, "labels"), manifest.label_names) == ([[]], [])


def test_labels_are_the_names_of_the_folders(tmp_path):
    path = fill(tmp_path, "dog/a.wav", "cat/a.wav", "sets/dog/b.wav")
    manifest = load_manifest("folder", path, labels_from_folders=True)
    assert manifest.label_names == ["cat", "dog"]
    assert column(manifest, "labels") == [[0], [1], [1]]


def test_labels_from_folders_name_a_file_outside_any(tmp_path):
    assert "'loose.wav'" in refused("folder", fill(tmp_path, "cat/a.wav", "loose.wav"), labels_from_folders=True)


def test_a_file_uri_of_a_folder_is_read(tmp_path, write_wav):
    (tmp_path / "my clips").mkdir()
    write_wav(tmp_path / "my clips/a.wav", [0.1] * 1_600)
    manifest = load_manifest("folder", (tmp_path / "my clips").as_uri())
    assert len(decode(column(manifest, "uri")[0], 16_000)[0]) == 1_600


def test_a_loop_of_links_ends(tmp_path):
    path = fill(tmp_path, "sub/a.wav")
    (tmp_path / "sub/loop").symlink_to("..")
    assert column(load_manifest("folder", path), "clip_id") == ["sub/a.wav"]


def test_a_linked_folder_is_followed(tmp_path):
    fill(tmp_path / "elsewhere", "a.wav")
    (tmp_path / "input").mkdir()
    (tmp_path / "input/linked").symlink_to("../elsewhere")
    assert column(load_manifest("folder", str(tmp_path / "input")), "clip_id") == ["linked/a.wav"]


def test_mistakes_in_a_folder_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path, "a.wav", "texts/a.txt", "texts/b.md")
    assert "is empty" in refused("folder", tmp_path / "empty")
    assert "does not exist" in refused("folder", tmp_path / "gone")
    assert "holds 2 files, none with an audio extension" in refused("folder", tmp_path / "texts")
    assert "is a file, a folder is needed" in refused("folder", tmp_path / "a.wav")
    assert "gopher:// is not supported" in refused("folder", "gopher://host/clips")


def test_real_esc10_has_400_clips_of_10_labels_in_5_folds(esc10):
    manifest = load_manifest("esc50", str(esc10))
    folds = column(manifest, "fold")
    assert manifest.clips.num_rows == 400
    assert len(set(manifest.label_names)) == 10
    assert [folds.count(fold) for fold in range(1, 6)] == [80] * 5


def test_labels_of_real_esc10_are_those_of_its_table(esc10):
    """A clip is named fold-source-take-target."""
    manifest = load_manifest("esc50", str(esc10))
    for clip_id, labels in zip(column(manifest, "clip_id"), column(manifest, "labels"), strict=True):
        assert labels == [int(clip_id.partition(".")[0].rpartition("-")[2])]


def esc50(root, text, name="esc50.csv"):
    fill(root, "audio/a.wav", f"meta/{name}")
    (root / "meta" / name).write_text(text)
    return root


HEADER = "filename,fold,target,category\n"


def test_esc50_orders_labels_by_target(tmp_path):
    manifest = load_manifest("esc50", str(esc50(tmp_path, HEADER + "b.wav,2,41,ant\na.wav,1,7,zebra\n")))
    assert manifest.label_names == ["zebra", "ant"]
    assert column(manifest, "labels") == [[0], [1]]
    assert column(manifest, "uri") == [str(tmp_path / "audio/a.wav"), str(tmp_path / "audio/b.wav")]


def test_mistakes_in_an_esc50_copy_are_named(tmp_path):
    fill(tmp_path / "bare", "audio/a.wav")
    two = esc50(esc50(tmp_path / "two", HEADER), HEADER, "other.csv")
    assert "expected one meta/*.csv, found 0" in refused("esc50", tmp_path / "bare")
    assert "expected one meta/*.csv, found 2" in refused("esc50", two)
    assert "does not exist" in refused("esc50", tmp_path / "gone")
    assert "lacks the columns fold, target" in refused("esc50", esc50(tmp_path / "a", "filename,category\na.wav,x\n"))
    assert "lacks the columns" in refused("esc50", esc50(tmp_path / "b", ""))
    twice = HEADER + "a.wav,1,0,dog\na.wav,2,0,dog\n"
    assert "1 clip ids occur more than once" in refused("esc50", esc50(tmp_path / "c", twice))


def table(path, **columns):
    fill(path.parent, *(uri for uri in columns.get("uri", ()) if uri))
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_csv_manifest_is_read(tmp_path):
    fill(tmp_path, "sub/b.wav")
    (tmp_path / "list.csv").write_text(
        "clip_id,uri,start_s,duration_s,labels,split,fold\n"
        "two,sub/b.wav,1.5,2,rain; wind,test,3\n"
        "one,/no/such/a.wav,0,0.5,rain,train,1\n"
    )
    manifest = load_manifest("manifest", str(tmp_path / "list.csv"))
    common = {"split": "train", "start_s": 0.0, "locator": None}
    assert manifest.clips.to_pylist() == [
        common | {"clip_id": "one", "uri": "/no/such/a.wav", "duration_s": 0.5, "fold": 1, "labels": [0]},
        {"clip_id": "two", "uri": str(tmp_path / "sub/b.wav"), "start_s": 1.5, "duration_s": 2.0, "split": "test",
         "fold": 3, "labels": [0, 1], "locator": None},
    ]  # fmt: skip
    assert manifest.label_names == ["rain", "wind"]


def test_a_column_of_uris_is_enough(tmp_path):
    fill(tmp_path, "b.wav", "007.wav")
    (tmp_path / "list.csv").write_text("uri\nb.wav\n007.wav\n")
    assert load_manifest("manifest", str(tmp_path / "list.csv")).clips.to_pylist() == [
        {"clip_id": name, "uri": str(tmp_path / name), "start_s": 0.0, "duration_s": None, "split": "", "fold": -1,
         "labels": [], "locator": None}
        for name in ("007.wav", "b.wav")
    ]  # fmt: skip


def test_numbers_stay_text_where_text_is_meant(tmp_path):
    fill(tmp_path, "1.wav")
    (tmp_path / "list.csv").write_text("clip_id,uri,labels\n007,1.wav,03\n")
    manifest = load_manifest("manifest", str(tmp_path / "list.csv"))
    assert (column(manifest, "clip_id"), manifest.label_names) == (["007"], ["03"])


def test_a_parquet_manifest_is_read(tmp_path):
    path = table(tmp_path / "list.parquet", uri=["a.wav", "b.wav", "c.wav"], labels=["x;y", None, ""], fold=[2, 1, 1])
    manifest = load_manifest("manifest", path)
    assert column(manifest, "labels") == [[0, 1], [], []]
    assert column(manifest, "fold") == [2, 1, 1]
    assert column(manifest, "uri") == [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]


@pytest.mark.parametrize("labels", [[["x", "y"], ["x"]], [["x", "y"], None]])
def test_a_parquet_manifest_may_hold_lists_of_labels(tmp_path, labels):
    manifest = load_manifest("manifest", table(tmp_path / "list.parquet", uri=["a.wav", "b.wav"], labels=labels))
    assert column(manifest, "labels") == [[0, 1], [0] if labels[1] else []]


def test_a_file_uri_of_a_manifest_keeps_its_clips_beside_it(tmp_path):
    fill(tmp_path, "a.wav")
    (tmp_path / "list.csv").write_text("uri\na.wav\n")
    manifest = load_manifest("manifest", (tmp_path / "list.csv").as_uri())
    assert column(manifest, "uri") == [str(tmp_path / "a.wav")]


def test_unknown_columns_are_remarked(tmp_path):
    fill(tmp_path, "a.wav")
    (tmp_path / "list.csv").write_text("uri,mood,city\na.wav,calm,Rome\n")
    assert load_manifest("manifest", str(tmp_path / "list.csv")).remarks == (
        "columns of the manifest left out: city, mood",
    )


def test_clip_ids_that_occur_twice_are_named(tmp_path):
    fill(tmp_path, "a.wav")
    (tmp_path / "list.csv").write_text("clip_id,uri\nx,a.wav\ny,b.wav\nx,c.wav\n")
    assert refused("manifest", tmp_path / "list.csv").endswith(": x (a column clip_id names the clips)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("clip_id,where\nx,a.wav\n", "has no column `uri`, nor another for the sound files (it has: clip_id, where)"),
        ("uri\n", "no clips in"),
        ("", "is empty"),
        ("uri,labels\na.wav,x,y\n", "cannot read the manifest"),
        (
            "uri,start_s\na.wav,1\na.wav,soon\n",
            "has a column of the wrong type, 'start_s': 'soon' in row 2 is no number",
        ),
        ("uri,fold\na.wav,first\n", "has a column of the wrong type, 'fold': 'first' in row 1 is no number"),
        ("uri,fold\na.wav,1.5\n", "has a column of the wrong type, 'fold': it holds"),
        ('uri,labels\na.wav,"dog\nb.wav,cat\n', "row 1 of the manifest"),
    ],
)
def test_mistakes_in_a_csv_manifest_are_named(tmp_path, text, reason):
    (tmp_path / "list.csv").write_text(text)
    assert reason in refused("manifest", tmp_path / "list.csv")


def test_mistakes_in_a_parquet_manifest_are_named(tmp_path):
    (tmp_path / "junk.parquet").write_bytes(b"not Parquet at all")
    assert "cannot read the manifest" in refused("manifest", tmp_path / "junk.parquet")
    assert "wrong type" in refused("manifest", table(tmp_path / "s.parquet", uri=["a.wav"], start_s=["soon"]))
    assert "does not exist" in refused("manifest", tmp_path / "gone.csv")
    assert "is a folder without wav.scp" in refused("manifest", tmp_path)
    audio = pa.array([{"bytes": b"RIFF", "path": "a.wav"}])
    assert "'audio': it holds struct<bytes" in refused("manifest", table(tmp_path / "s.parquet", audio=audio))


def test_numbers_may_be_clip_ids_and_labels(tmp_path):
    manifest = load_manifest(
        "manifest", table(tmp_path / "n.parquet", uri=["a.wav", "b.wav"], clip_id=[7, 8], labels=[[3, 1], None])
    )
    assert column(manifest, "clip_id") == ["7", "8"] and manifest.label_names == ["1", "3"]
    assert column(manifest, "labels") == [[1, 0], []]


def test_a_name_that_is_not_utf8_is_left_out_with_a_remark(tmp_path, write_wav):
    write_wav(tmp_path / "good.wav", np.zeros(1000), 16_000)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")).touch()
    manifest = load_manifest("folder", str(tmp_path))
    assert manifest.clips.num_rows == 1 and "names are not UTF-8" in manifest.remarks[0]


def test_a_link_to_itself_is_left_out(tmp_path, write_wav):
    write_wav(tmp_path / "good.wav", np.zeros(1000), 16_000)
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    assert load_manifest("folder", str(tmp_path)).clips["clip_id"].to_pylist() == ["good.wav"]


@pytest.mark.parametrize(("fold", "encoding", "ok"), [("1", "utf-8-sig", True), ("one", "utf-8", False)])
def test_esc50_tables_with_a_byte_order_mark_are_read_and_broken_folds_named(tmp_path, fold, encoding, ok):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        f"filename,fold,target,category\na.wav,{fold},0,dog\n", encoding=encoding
    )
    if ok:
        assert load_manifest("esc50", str(tmp_path)).clips["fold"].to_pylist() == [1]
    else:
        with pytest.raises(UserError, match=r"cannot read 'meta/esc50.csv'"):
            load_manifest("esc50", str(tmp_path))


def test_empty_cells_of_a_manifest_get_the_defaults(tmp_path):
    cells = {"uri": ["a.wav", "b.wav"], "start_s": [None, 2.0], "fold": [None, 3], "split": [None, "train"]}
    clips = load_manifest("manifest", table(tmp_path / "m.parquet", **cells)).clips
    assert clips.select(["start_s", "fold", "split"]).to_pydict() == {
        "start_s": [0.0, 2.0], "fold": [-1, 3], "split": ["", "train"],
    }  # fmt: skip


def test_a_manifest_row_without_a_uri_is_refused(tmp_path):
    pq.write_table(pa.table({"uri": ["a.wav", None]}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="1 row without a uri"):
        load_manifest("manifest", str(tmp_path / "m.parquet"))


def test_files_that_nothing_here_can_read_are_refused_before_the_job(tmp_path, monkeypatch, write_wav):
    write_wav(tmp_path / "a.wav", np.zeros(100))
    for name in ("b.m4a", "c.WebM"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("ajepa.audio.sources.has_av", lambda: False)
    with pytest.raises(UserError, match=r"2 files need PyAV, .*b.m4a' among them: pip install 'ajepa\[av\]'"):
        load_manifest("folder", str(tmp_path))
    monkeypatch.setattr("ajepa.audio.sources.has_av", lambda: True)
    assert load_manifest("folder", str(tmp_path)).clips.num_rows == 3
