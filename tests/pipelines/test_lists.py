"""Lists as inputs of commands: what is taken for what is said before work begins."""

import json

import pytest

from pipelines import embed, preprocess
from pipelines.cli.command import run_command


def test_columns_of_a_list_are_named_on_the_command_line(sounds, tmp_path, capsys):
    files = sorted(sounds.rglob("*.wav"))
    rows = [{"file": str(file), "kind": file.parent.name, "label": "x"} for file in files]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--source", "manifest", "--input", str(tmp_path / "list.jsonl"), "--output", str(tmp_path / "new"),
            "--dry-run", "--columns", "labels=kind"]  # fmt: skip
    run_command(lambda: preprocess.main(preprocess.parse_args(argv)))
    out = capsys.readouterr().out
    assert "note: column 'file' of the manifest taken for 'uri'\n" in out
    assert "note: columns of the manifest left out: label\n" in out


@pytest.mark.parametrize(("command", "others"), [(preprocess, ["--source", "manifest"]), (embed, ["--encoder", "e"])])
def test_several_pairs_are_one_option(command, others):
    argv = [*others, "--input", "i", "--output", "o", "--columns", "uri=file", "labels=a b"]
    assert command.parse_args(argv).columns == ("uri=file", "labels=a b")
