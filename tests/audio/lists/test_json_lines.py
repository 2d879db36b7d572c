"""JSON Lines as NeMo, OpenBEATs and audio folders have them."""

import gzip

import pytest
from helpers.lists import lines

from ajepa.audio.lists import text


@pytest.mark.parametrize("name", ["manifest.json", "train.jsonl", "list", "train.jsonl.gz"])
def test_a_nemo_manifest_is_read(lists, name):
    content = lines(
        {"audio_filepath": "a.wav", "offset": 0.25, "duration": 0.5, "text": "one two", "label": "yes"},
        {"audio_filepath": "sub/c.wav", "offset": 0, "duration": 1, "text": "three", "label": "no"},
    ).encode()
    clips, names, remarks = lists.load(lists.write(name, gzip.compress(content) if name.endswith("gz") else content))
    assert clips == [
        lists.clip("a.wav", "a.wav", start_s=0.25, duration_s=0.5, labels=[1]),
        lists.clip("sub/c.wav", "sub/c.wav", duration_s=1.0, labels=[0]),
    ]
    assert names == ["no", "yes"]
    assert remarks == (
        "column 'audio_filepath' of the manifest taken for 'uri'",
        "column 'offset' of the manifest taken for 'start_s'",
        "column 'duration' of the manifest taken for 'duration_s'",
        "column 'label' of the manifest taken for 'labels'",
        "columns of the manifest left out: text",
    )


def test_a_list_of_openbeats_is_read(lists):
    path = lists.write("list.jsonl", lines({"id": "x", "audio": "a.wav", "start": 0.25, "end": 0.5},
                                           {"id": "y", "audio": "b.wav"}))  # fmt: skip
    clips, _, _ = lists.load(path)
    assert clips == [lists.clip("x", "a.wav", start_s=0.25, duration_s=0.25), lists.clip("y", "b.wav")]


def test_the_metadata_of_an_audio_folder_is_read(lists):
    path = lists.write("metadata.jsonl", lines({"file_name": "a.wav", "labels": ["dog", "cat"], "meta": {"year": 1999}},
                                               {"file_name": "b.wav", "labels": [], "meta": None}))  # fmt: skip
    clips, names, remarks = lists.load(path)
    assert clips == [lists.clip("a.wav", "a.wav", labels=[1, 0]), lists.clip("b.wav", "b.wav")]
    assert names == ["cat", "dog"] and remarks[-1] == "columns of the manifest left out: meta.year"


def test_a_field_of_an_object_can_be_named(lists):
    path = lists.write("list.jsonl", lines({"audio": {"path": "a.wav"}, "meta": {"kind": "dog"}}))
    clips, names, _ = lists.load(path, "labels=meta.kind")
    assert clips == [lists.clip("a.wav", "a.wav", labels=[0])] and names == ["dog"]


def test_what_looks_like_a_date_is_a_text(lists):
    path = lists.write("list.jsonl", lines({"path": "a.wav", "id": "2020-01-01", "labels": ["2020-01-02 10:00:00"]}))
    assert lists.load(path)[:2] == ([lists.clip("2020-01-01", "a.wav", labels=[0])], ["2020-01-02 10:00:00"])


def test_blocks_of_lines_may_have_other_fields(lists, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 40)
    rows = [{"path": "a.wav", "id": "1", "labels": []}, {"path": "b.wav", "id": "2", "labels": ["dog"], "fold": 2},
            {"path": "sub/c.wav", "id": "3", "start": 0}, {"path": "a.wav", "id": "4", "start": 0.5}]  # fmt: skip
    clips, names, _ = lists.load(lists.write("list.jsonl", "\n" + lines(*rows) + "\n\n"))
    assert clips == [
        lists.clip("1", "a.wav"), lists.clip("2", "b.wav", labels=[0], fold=2), lists.clip("3", "sub/c.wav"),
        lists.clip("4", "a.wav", start_s=0.5),
    ]  # fmt: skip
    assert names == ["dog"]


@pytest.mark.parametrize("piece", [64, 1 << 22], ids=["in several blocks", "in one block"])
def test_a_column_of_two_types_is_refused_only_if_it_is_needed(lists, monkeypatch, piece):
    monkeypatch.setattr(text, "PIECE", piece)
    rows = [{"path": "a.wav", "offset": 0.5, "extra": 1}, {"path": "b.wav", "offset": "late", "extra": "x"}]
    path = lists.write("list.jsonl", lines(*rows))
    said = lists.refused(path)
    assert said.startswith(f"the column 'offset' of the manifest {str(path)!r} holds ") and "2" in said
    assert said.endswith("make it one type")
    clips, _, remarks = lists.load(path, "start_s=")
    assert clips == [lists.clip("a.wav", "a.wav"), lists.clip("b.wav", "b.wav")]
    assert remarks[-1] == "columns of the manifest left out: extra, offset"


DEEP = b'{"path": "a.wav", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n"  # Arrow's reader crashes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"path": "a.wav"}\n{"path": "b', "line 2 of the manifest {path!r} is no JSON object: Unterminated string "
         "starting at at column 10 (is the file cut there?)"),
        (b'{"path": "a.wav"}\n\n["b.wav"]\n', 'line 3 of the manifest {path!r} is a list, not an object as {"audio_'),
        (b'{"path": "a.wav"}\n3\n', "line 2 of the manifest {path!r} is a int, not an object"),
        (b'{"path": "a.wav"} {"path": "b.wav"}\n', "line 1 of the manifest {path!r} is no JSON object: Extra data"),
        (b'{"path": "a.wav", "path": "b.wav"}\n', "is no JSON object: it has 'path' twice"),
        (b'{"path": "a.wav", "\\ud800": 1}\n', "is no JSON object: 'utf-8' codec can't"),
        (b'{\n "path": "a.wav"\n}\n', "line 1 of the manifest {path!r} is no JSON object: Expecting property name"),
        (DEEP, "line 1 of the manifest {path!r} is nested"),
        (b'{"path": "a.wav", "PATH": "b.wav"}\n', "has the column 'path' twice"),
        (b'{"path": "a.wav", "offset": "soon"}\n', "of the wrong type, 'offset': 'soon' in row 1 is no number"),
        (b'{"path": "a.wav", "offset": [1]}\n', "of the wrong type, 'offset': it holds list<"),
        (b'{"path": "a.wav"}\n{"text": "x"}\n', "has 1 row without a uri"),
        (b'{"path": "a.wav", "duration": -1.5}\n', "is a piece of its file: row 1 starts at 0 s and lasts -1.5 s"),
        (b'{"path": "a.wav", "label": {"name": "x"}, "labels": [["dog"]]}\n', "of the wrong type, 'labels'"),
        (b'{"text": "x"}\n', "has no column `uri`"),
        ('{"path": "a.wav"}\n'.encode("utf-16"), "is UTF-16"),
        (b'{"path": "\xff.wav"}\n', "is not UTF-8 (invalid start byte at byte 10)"),
        (b"", "is empty"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(lists, content, said):
    path = lists.write("list.jsonl", content)
    assert said.replace("{path!r}", repr(str(path))) in lists.refused(path)


def test_a_line_that_never_ends_is_refused(lists, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 1 << 10)
    monkeypatch.setattr(text, "LONGEST", 1 << 12)
    path = lists.write("list.jsonl", b'{"path": "a.wav"}\n' + b'{"path": "' + b"a" * 10_000)
    assert "line 2 of the manifest" in lists.refused(path) and "it is no list" in lists.refused(path)
