"""One JSON document: AST's list with its table of classes, and a plain array."""

import json

import pytest

from ajepa.audio.lists import text

CLASSES = 'index,mid,display_name\n1,/m/02,Bark\n0,/m/01,"Speech, child\'s"\n2,/m/03,Rain\n'
DATA = {"data": [{"wav": "a.wav", "labels": "/m/02,/m/01"}, {"wav": "sub/c.wav", "labels": "/m/02"}]}


@pytest.mark.parametrize("table", ["class_labels_indices.csv", "esc_class_labels_indices.csv"])
@pytest.mark.parametrize("piece", [32, 1 << 22])
def test_labels_of_asts_json_are_those_of_its_table_in_its_order(lists, monkeypatch, table, piece):
    monkeypatch.setattr(text, "PIECE", piece)
    lists.write(table, CLASSES)
    clips, names, remarks = lists.load(lists.write("train.json", json.dumps(DATA)))
    assert clips == [
        lists.clip("a.wav", "a.wav", labels=[1, 0]), lists.clip("sub/c.wav", "sub/c.wav", labels=[1])
    ]  # fmt: skip
    assert names == ["Speech, child's", "Bark", "Rain"]
    assert remarks[0] == f"labels are called and numbered as in {lists.folder / table}"


def test_without_a_table_labels_are_called_by_their_ids(lists):
    clips, names, remarks = lists.load(lists.write("train.json", json.dumps(DATA, indent=1)))
    assert clips[0] == lists.clip("a.wav", "a.wav", labels=[1, 0]) and names == ["/m/01", "/m/02"]
    assert remarks[0] == "no class_labels_indices.csv lies beside the manifest: labels are called by their ids"


def test_a_plain_array_is_read(lists):
    path = lists.write("list.json", json.dumps([{"path": "a.wav", "labels": "dog;cat"}, {"path": "b.wav", "fold": 1}]))
    clips, names, _ = lists.load(path)
    assert clips == [lists.clip("a.wav", "a.wav", labels=[1, 0]), lists.clip("b.wav", "b.wav", fold=1)]
    assert names == ["cat", "dog"]


def test_mistakes_of_labels_and_tables_are_named(lists):
    path = lists.write("train.json", json.dumps({"data": [*DATA["data"], {"wav": "b.wav", "labels": "/m/9"}]}))
    table = lists.write("class_labels_indices.csv", CLASSES)
    assert lists.refused(path) == f"the label '/m/9' is not in {str(table)!r}"
    table.write_text(CLASSES + "3,/m/03,Rain again\n")
    assert lists.refused(path) == f"{str(table)!r} has the class '/m/03' twice"
    table.write_text("mid,name\n")
    assert "lacks the columns display_name, index" in lists.refused(path)
    table.unlink()
    for name in ("esc_class_labels_indices.csv", "sc_class_labels_indices.csv"):
        lists.write(name, CLASSES)
    assert "holds esc_class_labels_indices.csv, sc_class_labels_indices.csv: call the one of" in lists.refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(DATA)[:60], "entry 2 of the manifest {path!r} is no JSON: "),
        (json.dumps(DATA)[:-2], "entry 3 of the manifest {path!r} is no JSON: Expecting value"),
        (
            json.dumps(DATA).replace("/m/02,", '"'),
            "entry 1 of the manifest {path!r} is no JSON: Expecting ',' delimiter",
        ),
        ('{"data": ["a.wav"]}', 'entry 1 of the manifest {path!r} is a str, not an object as {"wav"'),
        ('{"data": [' + "[" * 5_000, "entry 1 of the manifest {path!r} is nested too deep"),
        ('[{"wav": "a.wav", "wav": "b.wav"}]', "entry 1 of the manifest {path!r} is no JSON: it has 'wav' twice"),
        (
            '[{"wav": "a.wav"}, {"wav": 3}]',
            "the column 'wav' of the manifest {path!r} holds a text and, in entry 2, a",
        ),
        ('{"data": []}', "the manifest {path!r} is empty: it has no entry"),
        ("[]", "the manifest {path!r} is empty: it has no entry"),
    ],
)
def test_mistakes_are_named_with_their_entry(lists, content, said):
    path = lists.write("train.json", content)
    assert said.replace("{path!r}", repr(str(path))) in lists.refused(path)


def test_a_cut_document_says_so(lists):
    assert lists.refused(lists.write("train.json", json.dumps(DATA)[:60])).endswith("(the file is cut there)")
