"""Tables as text, with each separator and under the names that others give their columns."""

import gzip

import pytest

from ajepa.audio.lists import text


def test_a_tsv_is_read_under_its_own_names(lists):
    path = lists.write("list.tsv", "Begin File\tpath\tonset\toffset\tevent_label\nx\ta.wav\t0.25\t0.75\tdog;cat\n")
    clips, names, remarks = lists.load(path)
    assert clips == [lists.clip("a.wav", "a.wav", start_s=0.25, duration_s=0.5, labels=[1, 0])]
    assert names == ["cat", "dog"]
    assert remarks == (
        "columns of the manifest are separated by tabs",
        "column 'path' of the manifest taken for 'uri'",
        "column 'onset' of the manifest taken for 'start_s'",
        "column 'offset' of the manifest taken for the end of the clip",
        "column 'event_label' of the manifest taken for 'labels'",
        "columns of the manifest left out: Begin File",
    )


def test_in_a_list_with_semicolons_commas_separate_labels_and_decimals(lists):
    path = lists.write("list.csv", "\ufefffile;start;duration;labels\na.wav;0,25;0.5;dog, cat\nb.wav;;;dog\n")
    clips, names, remarks = lists.load(path)
    assert clips == [
        lists.clip("a.wav", "a.wav", start_s=0.25, duration_s=0.5, labels=[1, 0]),
        lists.clip("b.wav", "b.wav", labels=[1]),
    ]
    assert names == ["cat", "dog"] and remarks[0] == "columns of the manifest are separated by semicolons"


def test_a_csv_is_read_with_columns_that_are_named(lists):
    path = lists.write("list.csv", "filename,fold,target,category,esc10\na.wav,1,7,dog,True\nsub/c.wav,2,0,cat,True\n")
    assert "columns 'target' and 'category', and each may be labels: say which with --columns" in lists.refused(path)
    clips, names, remarks = lists.load(path, "labels=category")
    assert clips == [
        lists.clip("a.wav", "a.wav", fold=1, labels=[1]), lists.clip("sub/c.wav", "sub/c.wav", fold=2, labels=[0])
    ]  # fmt: skip
    assert names == ["cat", "dog"]
    assert remarks == ("column 'filename' of the manifest taken for 'uri'",
                       "columns of the manifest left out: esc10, target")  # fmt: skip


def test_an_end_alone_starts_at_the_beginning(lists):
    clips, _, _ = lists.load(lists.write("list.csv", "file,end\na.wav,0.5\nb.wav,\n"))
    assert clips == [lists.clip("a.wav", "a.wav", duration_s=0.5), lists.clip("b.wav", "b.wav")]


def test_ids_that_name_every_clip_are_taken_and_others_are_not(lists):
    clips, _, _ = lists.load(lists.write("list.csv", "file,id\na.wav,7\nb.wav,03\n"))
    assert clips == [lists.clip("03", "b.wav"), lists.clip("7", "a.wav")]
    clips, _, remarks = lists.load(lists.write("list.csv", "file,id\na.wav,7\nb.wav,7\n"))
    assert clips == [lists.clip("a.wav", "a.wav"), lists.clip("b.wav", "b.wav")]
    assert "column 'id' does not name every clip by itself: clips are called by their files" in remarks
    path = lists.write("list.csv", "file,id\na.wav,7\nb.wav,7\n")
    assert "1 clip ids occur more than once" in lists.refused(path, "clip_id=id")


def test_a_blank_after_each_comma_belongs_to_no_cell(lists):
    clips, names, _ = lists.load(lists.write("list.csv", "labels, uri\ndog, a.wav\n"))
    assert (clips, names) == ([lists.clip("a.wav", "a.wav", labels=[0])], ["dog"])


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ('a.wav\t"dog, wet"\tx\nb.wav\tcat\ty\n', ["cat", "dog, wet"]),
        ('a.wav\tdog\t"he said\nb.wav\tcat\t"x" and y\n', ["cat", "dog"]),
        ('a.wav\tdog\t"two\tthree"\nb.wav\tcat\ty\n', ["cat", "dog"]),
    ],
    ids=["quoted cells", "quotes that are never closed", "a tab in quotes"],
)
def test_quotes_in_a_tsv_neither_join_lines_nor_part_cells(lists, rows, labels):
    clips, names, _ = lists.load(lists.write("list.tsv", f"uri\tlabels\ttext\n{rows}"))
    assert [clip["clip_id"] for clip in clips] == ["a.wav", "b.wav"] and names == labels


def test_quoted_names_of_columns_are_the_names(lists):
    clips, _, _ = lists.load(lists.write("list.tsv", '"uri"\t"split"\n"a.wav"\t"train"\n'))
    assert clips == [lists.clip("a.wav", "a.wav", split="train")]


def test_a_compressed_csv_is_read(lists):
    rows = "".join(f"a.wav,{i}\n" for i in range(5))
    packed = gzip.compress(b"uri,clip_id\n") + gzip.compress(rows.encode())  # of two members, as `cat` makes it
    clips, _, _ = lists.load(lists.write("list.csv.gz", packed))
    assert clips == [lists.clip(str(i), "a.wav") for i in range(5)]


def test_a_csv_in_many_pieces_is_read_whole(lists, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 24)
    rows = "".join(f"a.wav,Gerät{i}\n" for i in range(9))
    clips, _, _ = lists.load(lists.write("list.csv", f"\ufeffuri,clip_id\n{rows}"))
    assert clips == [lists.clip(f"Gerät{i}", "a.wav") for i in range(9)]


def test_a_byte_that_is_no_text_is_named_wherever_it_is(lists, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 16)
    content = "uri,labels\n" + "a.wav,ä\n" * 10
    assert "is not UTF-8 (invalid start byte at byte 101)" in lists.refused(
        lists.write("list.csv", content.encode() + b"\xff\n")
    )
    said = lists.refused(lists.write("list.csv", content.encode() + b"\xc3"))
    assert "is not UTF-8 (unexpected end of data at byte 101)" in said


@pytest.mark.parametrize("keep", [30, -4])
def test_a_damaged_gzip_file_is_named(lists, keep):
    packed = gzip.compress("".join(f"uri{i},x\n" for i in range(500)).encode())
    path = lists.write("list.csv.gz", packed[:keep])
    assert f"the manifest {str(path)!r} is a damaged gzip file (" in lists.refused(path)


def test_a_file_that_unpacks_to_far_more_than_a_list_is_refused(lists, monkeypatch):
    monkeypatch.setattr(text, "BELIEVED", 1 << 16)
    path = lists.write("list.jsonl.gz", gzip.compress(b'{"path": "a.wav"}\n' * 200_000))
    assert "unpacks to more than 200 times its size" in lists.refused(path)


def test_times_of_no_piece_are_counted_or_refused(lists):
    clips, _, remarks = lists.load(lists.write("list.csv", "uri,start,end\na.wav,0,0.5\nb.wav,0.75,0.5\n"))
    assert [clip["duration_s"] for clip in clips] == [0.5, -0.25]
    assert remarks[-1] == (
        "rows of the manifest that are no piece of their file and become bad rows: 1 (row 2 starts at 0.75 s and lasts "
        "-0.25 s)"
    )
    path = lists.write("list.csv", "uri,duration\na.wav,-1\nb.wav,-1\n")
    assert lists.refused(path).endswith("is a piece of its file: row 1 starts at 0 s and lasts -1 s")
