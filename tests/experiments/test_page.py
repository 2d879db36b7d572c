"""The tables in the pages are those of the JSON files, and nothing that was measured is missing there."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ajepa.experiments import report
from ajepa.experiments.page import LIST, hidden, main, read_list
from ajepa.experiments.results import read_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The list of a copy of pages and results, written with few replicates."""
    monkeypatch.setattr(report, "REPLICATES", 10)
    shutil.copytree((ROOT / LIST).parent, (tmp_path / LIST).parent)
    shutil.copy(ROOT / "README.md", tmp_path)
    path = tmp_path / LIST
    assert main([str(path)]) == 0
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def add_to_scores(file: Path, seed: str, protocol: str) -> None:
    content = json.loads(file.read_text())
    for score in content["seeds"][seed]["scores"]:
        score["score"] += 0.01 * (score["protocol"] == protocol)
    file.write_text(json.dumps(content))


def test_the_pages_have_the_tables_of_the_results(capsys):
    assert main([str(ROOT / LIST), "--check"]) == 0, capsys.readouterr().out


def test_every_score_of_every_result_stands_in_a_table():
    _, tables = read_list(ROOT / LIST)
    results = read_results(str((ROOT / LIST).parent))
    assert results and hidden(tables.values(), results) == []


def test_no_speed_stands_in_the_pages():
    _, tables = read_list(ROOT / LIST)
    assert not any("clips/s" in table.columns for table in tables.values())


def test_a_changed_result_is_found_and_written(copy, capsys):
    (longer,) = (path for path in copy.parent.glob("eat-*.json") if '"max_steps": 1500' in path.read_text())
    add_to_scores(longer, "1", "knn")
    capsys.readouterr()
    assert main([str(copy), "--check"]) == 1
    found = {line.split(": ")[1].split()[0] for line in capsys.readouterr().out.splitlines()}
    assert found == {"objective-1500-esc10-knn", "objective-1500-fsdd-knn", "objective-front"}
    assert main([str(copy)]) == 0 and main([str(copy), "--check"]) == 0


def test_a_changed_page_is_found(copy, capsys):
    page = copy.parents[2] / "README.md"
    number = re.search(r"\| eat \| (0\.\d+)", page.read_text())
    assert number is not None
    before = page.read_text()
    change(page, number[0], "| eat | 0.999")
    capsys.readouterr()
    assert main([str(copy), "--check"]) == 1
    assert "README.md: objective-front differs from the results: run `make tables`\n" in capsys.readouterr().out
    assert main([str(copy)]) == 0 and page.read_text() == before


def test_seeds_of_another_folder_are_added(copy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    file = min(copy.parent.glob("lejepa-*.json"))
    content = json.loads(file.read_text())
    content["seeds"] = {"7": content["seeds"]["0"]}
    (other / file.name).write_text(json.dumps(content))
    known = {path.name: path.read_text() for path in copy.parent.glob("*.json")}
    seeds = len(json.loads(known[file.name])["seeds"])
    assert main([str(copy), "--add", str(other)]) == 0
    assert f"| lejepa | {seeds + 1} |" in (copy.parent / "README.md").read_text()
    changed = {path.name for path in copy.parent.glob("*.json") if path.read_text() != known.get(path.name)}
    assert changed == {file.name}


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("README.md", "results: objective-front", "results: front", "README.md: unknown table 'front': "),
        ("README.md", "<!-- end -->", "", "README.md: <!-- results: objective-front --> without <!-- end -->"),
        ("README.md", "<!-- results: objective-front -->", "", "no page has <!-- results: objective-front -->"),
        (LIST, '"objective"', '"objectives"', "objective-front: unknown table 'objectives': choose from objective, "),
        (LIST, '"nano"', '"mini"', "unknown preset 'mini'"),
        (LIST, 'probe = "fsdd"', 'probe = "digits"', "unknown probe 'digits': choose from esc10, fsdd"),
        (LIST, "columns", "column", "has no 'columns'"),
        (LIST, "pages = [", "pages = ", "cannot be read"),
        (LIST, '"README.md", ', '"missing.md", ', "missing.md cannot be read: No such file"),
        (LIST, '"knn, mean", "knn: verdict"', '"knn, mean", "knn, max"', "objective-front: no column 'knn, max' with"),
        (LIST, '"fsdd"', '"esc10"', "scores stand in no table, the first is "),
        (LIST, "max_steps = 500", "max_steps = 501", "scores stand in no table, the first is "),
    ],
)
def test_a_mistake_is_one_line(copy, capsys, file, old, new, match):
    change(copy.parents[2] / file, old, new)
    pages = [path.read_text() for path in (copy.parent / "README.md", copy.parents[2] / "README.md")]
    capsys.readouterr()
    assert main([str(copy)]) == 2
    out, err = capsys.readouterr()
    assert match in err and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert pages == [path.read_text() for path in (copy.parent / "README.md", copy.parents[2] / "README.md")]


def test_an_added_folder_without_results_is_refused(copy, tmp_path, capsys):
    assert main([str(copy), "--add", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' has no results" in capsys.readouterr().err
