"""What every command does around its work: --help, exit codes, one line for what a disk, a store or a GPU refuses."""

import runpy
import subprocess
import sys

import pytest
import torch
from helpers.faults import PATIENCE, ROOT

from pipelines.cli.command import run_command


@pytest.mark.process
def test_mistakes_in_options_have_exit_code_2_too():
    command = [sys.executable, "pipelines/probe.py", "--encoder", "x", "--protocol", "cubic", "--data", "y"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cubic" in done.stderr + done.stdout


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied"), ConnectionResetError()]
)
def test_what_a_disk_or_a_store_refuses_is_one_line(capsys, error):
    def refused():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(refused)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and len(line) > len("error: ")


def test_an_interrupt_has_exit_code_130_and_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(interrupted)
    assert stop.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


COMMANDS = ["preprocess", "pretrain", "probe", "finetune", "predict", "embed", "explore", "export", "ablate", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_options_with_defaults(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{command}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / f"pipelines/{command}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "output" in printed.lower() and "(default:" in printed


@pytest.mark.process
def test_a_command_gives_its_help_from_any_folder(tmp_path):
    command = [sys.executable, str(ROOT / "pipelines/demo.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0 and "output" in done.stdout.lower() and "(default:" in done.stdout


def test_a_gpu_without_memory_gets_one_line_too(capsys):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of GPU memory: ") and "Tried to allocate 2.00 GiB." in line


def test_other_failures_keep_their_traceback():
    def main():
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        run_command(main)
