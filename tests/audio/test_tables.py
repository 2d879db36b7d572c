"""Manifests as people write them are used as meant, or refused with one line; nothing is ignored in silence."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.faults import PATH

from ajepa.audio.decode import decode_clip
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import sorted_names
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError


def read(folder, text):
    """The manifest of a list beside empty files a.wav to d.wav, which are not opened."""
    for name in "abcd":
        (folder / f"{name}.wav").touch()
    (folder / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_manifest("manifest", str(folder / "list.csv"))


@pytest.mark.parametrize(
    "head", [" URI, Labels ,Split", "Uri,LABELS,split", "\ufeffuri,labels,split", '"uri "," labels","SPLIT"']
)
def test_case_and_blanks_of_columns_do_not_matter(tmp_path, head):
    manifest = read(tmp_path, f"{head}\na.wav,dog,train\nb.wav,cat,test\n")
    assert manifest.label_names == ["cat", "dog"]
    assert manifest.clips["split"].to_pylist() == ["train", "test"]
    assert manifest.clips["labels"].to_pylist() == [[1], [0]]


def test_what_a_column_is_taken_for_is_said(tmp_path):
    assert "column ' Labels' of the manifest taken for 'labels'" in read(tmp_path, "uri, Labels\na.wav,x\n").remarks


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("uri,labels\n,low\na.wav,b\n", "1 row without a uri"),
        ("uri,labels\n ,low\n,b\n", "2 rows without a uri"),
        ("uri,clip_id\na.wav,\nb.wav,b\n", "1 row without a clip_id"),
    ],
)
def test_empty_cells_are_refused(tmp_path, text, missing):
    with pytest.raises(UserError, match=missing):
        read(tmp_path, text)


def test_a_label_that_a_clip_has_twice_counts_once(tmp_path):
    manifest = read(tmp_path, "uri,labels\na.wav,dog;dog\nb.wav,cat;dog; cat\nc.wav,\nd.wav,bird\n")
    assert manifest.label_names == ["bird", "cat", "dog"]
    assert manifest.clips["labels"].to_pylist() == [[2], [1, 2], [], [0]]


@pytest.mark.process
def test_a_process_that_ends_right_after_reading_is_not_aborted(tmp_path):
    """Arrow's threads did so in a third of all runs."""
    (tmp_path / "list.csv").write_text("uri,fold\na.wav,first\n")
    code = (
        "from pipelines import preprocess; from pipelines.cli.command import run_command; "
        "run_command(lambda: preprocess.main(preprocess.parse_args(['--source', 'manifest', '--dry-run', '--output', "
        "'out', '--input', 'list.csv'])))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | PATH, capture_output=True, text=True
        )
        for _ in range(6)
    ]
    assert [run.returncode for run in runs] == [2] * 6
    assert all("'first' in row 1 is no number" in run.stderr and "terminate" not in run.stderr for run in runs)


def test_other_columns_are_left_out_and_named(tmp_path):
    manifest = read(tmp_path, "uri,labels,label,speaker,path\na.wav,x,y,z,/a\n")
    assert manifest.remarks == ("columns of the manifest left out: label, path, speaker",)


@pytest.mark.parametrize("head", ["uri,uri,labels", "uri,URI,labels", "uri,labels, labels"])
def test_a_column_that_occurs_twice_is_refused(tmp_path, head):
    with pytest.raises(UserError, match=r"has the column '(uri|labels)' twice"):
        read(tmp_path, f"{head}\na.wav,b.wav,x\n")


def test_a_parquet_table_is_held_to_the_same(tmp_path):
    pq.write_table(pa.table({"URI": ["a.wav"], "start_ms": [500]}), tmp_path / "list.parquet")
    with pytest.raises(UserError, match="has a column 'start_ms', which may be start_s but in ms"):
        load_manifest("manifest", str(tmp_path / "list.parquet"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("uri,labels\na.wav,Gerät\n".encode("latin-1"), r"is not UTF-8 \(invalid continuation byte at byte"),
        ("uri,labels\na.wav,x\n".encode("utf-16"), "is UTF-16"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5"),
        (b"PK\x03\x04" + bytes(100), "is a spreadsheet or an archive"),
        (b"PAR1" + bytes(100), "is Parquet under another name"),
        (b"uri\0labels", "is no text"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x1f\x8b\x08\0", "is a damaged gzip file"),
    ],
)
def test_what_is_no_csv_is_named(tmp_path, data, what):
    with pytest.raises(UserError, match=what):
        read(tmp_path, data)


def test_pieces_of_one_file_are_called_by_their_times(tmp_path):
    manifest = read(tmp_path, "uri,start_s,duration_s\na.wav,0,0.5\na.wav,0.5,0.25\nb.wav,1,\na.wav,1,\n")
    assert manifest.clips["clip_id"].to_pylist() == ["a.wav@0-0.5", "a.wav@0.5-0.75", "a.wav@1-", "b.wav"]
    with pytest.raises(UserError, match=r"occur more than once .*\(a column clip_id names the clips\)"):
        read(tmp_path, "uri,start_s\na.wav,1\na.wav,1\n")


@pytest.mark.parametrize(("start", "length"), [(0.0, 0.0), (0.0, -1.0), (0.0, np.nan), (-1.0, None), (np.nan, None)])
def test_a_piece_of_no_length_is_a_bad_row(tmp_path, write_wav, start, length):
    clip = {"uri": write_wav(tmp_path / "a.wav", np.zeros(16_000)), "start_s": start, "duration_s": length}
    with pytest.raises(AudioError, match=r"^decode: a (duration|start) of "):
        decode_clip(clip, 16_000, 16_000)


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["2.5", "10", "-1"], ["-1", "2.5", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["b", "a"], ["a", "b"]),
    ],
)
def test_numeric_labels_are_ordered_as_numbers(names, ordered):
    assert sorted_names(names) == ordered


def test_files_of_macos_are_counted_and_no_class(tmp_path, write_wav):
    for folder in ("dog", "cat", "__MACOSX/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("a.wav", "._a.wav"):
            write_wav(tmp_path / folder / name, np.zeros(100))
    manifest = load_manifest("folder", str(tmp_path), labels_from_folders=True)
    assert manifest.label_names == ["cat", "dog"] and manifest.clips.num_rows == 2
    assert manifest.remarks[0].startswith("4 files of macOS beside the clips left out")
