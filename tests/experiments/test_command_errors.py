"""What `python -m ajepa.experiments` says of an output or a result that it cannot use: one line, exit code 2."""

import json
import os
from pathlib import Path

import pytest
from helpers.runs import tiny_config

from ajepa.config import PRESETS
from ajepa.experiments import __main__ as command
from ajepa.experiments import page, trial
from ajepa.experiments.runner import open_work, trial_folder


@pytest.fixture(autouse=True)
def _nothing_trains(monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=2))
    monkeypatch.setattr(trial, "train", lambda *_: pytest.fail("trained"))


def refused(small_dataset, output, capsys, *more: str) -> str:
    argv = ["loss", "--values", "l1", "--data", small_dataset.path, "--output", str(output), "--protocol", "knn"]
    assert command.main([*argv, "--seeds", "1", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_that_cannot_be_made_is_named(where, small_dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert f"error: cannot write to --output {str(tmp_path / where)!r}" in refused(
        small_dataset, tmp_path / where, capsys
    )


@pytest.mark.skipif(os.name == "nt" or not os.geteuid(), reason="root writes everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(small_dataset, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "error: cannot write to --output" in refused(small_dataset, tmp_path / "out", capsys)


def test_what_the_disk_refuses_is_one_line(small_dataset, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "held", full)
    assert refused(small_dataset, tmp_path / "out", capsys) == "error: [Errno 28] No space left on device"
    monkeypatch.setenv("AJEPA_TRACEBACK", "1")
    with pytest.raises(OSError, match="No space left"):
        refused(small_dataset, tmp_path / "out", capsys)


DAMAGED = [
    "{", "[]", "3", '{"format_version": 2}',
    '{"format_version": 2, "key": "k", "name": "n", "identity": {}, "seeds": 3}',
    '{"format_version": 2, "key": "k", "name": "n", "identity": {}, "seeds": {"0": {}}}',
    '{"format_version": 2, "key": "k", "name": "n", "identity": {}, "seeds": {"0": {"scores": [{"data": {}}]}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_is_named(content, small_dataset, tmp_path, capsys):
    known = tmp_path / "known/a.json"
    known.parent.mkdir()
    known.write_text(content)
    line = refused(small_dataset, tmp_path / "out", capsys, "--results", str(known.parent))
    assert f"{str(known)!r} is damaged" in line and "restore or delete it" in line


def test_a_damaged_result_of_an_own_trial_is_named(small_dataset, tmp_path, capsys):
    work = open_work(
        ["loss"], PRESETS["nano"], small_dataset.path, str(tmp_path), probe_data=(), protocols=("knn",),
        finetune=False, seeds=(0,), values=("l1",), equal_compute=False, results=(),
    )  # fmt: skip
    where = Path(trial_folder(work.output, work.plan.trials[0]), "result.json")
    where.parent.mkdir(parents=True)
    where.write_text(json.dumps({"key": "k"}))
    assert f"{str(where)!r} is damaged (no 'kind'): delete it" in refused(small_dataset, tmp_path, capsys)


def test_pages_that_cannot_be_written_are_one_line(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "page.md")

    monkeypatch.setattr(page, "run", refuse)
    assert page.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
