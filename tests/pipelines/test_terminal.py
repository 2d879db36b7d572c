"""What a terminal shows: reports that are written over each other; a log has them line by line."""

import io
import os
import subprocess
import sys

import pytest
from helpers.faults import PATIENCE, ROOT

from pipelines.cli.terminal import LiveLines

STEPS = "step 1/9  loss 0.5  3 clips/s\nstep 2/9  loss 0.4  3 clips/s\n"
MEASURED = "step 3/9  loss 0.3  3 clips/s  effective rank 7.3 of 32: learning\n"


def written(*texts):
    terminal = io.StringIO()
    lines = LiveLines(terminal)
    for text in texts:
        lines.write(text)
    lines.close_line()
    return terminal.getvalue()


def shown(text):
    """What is left on a terminal."""
    return [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]


def test_a_report_is_written_over_by_the_next_line():
    out = written("begin\n" + STEPS + MEASURED + "part-0  step 4/9  loss 0.2  3 clips/s\nend\n")
    assert shown(out) == ["begin", MEASURED.rstrip(), "end", ""]


def test_the_last_report_stays():
    assert shown(written(STEPS)) == ["step 2/9  loss 0.4  3 clips/s", ""]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_may_come_in_pieces(size):
    text = STEPS + MEASURED + "end\n"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert written(*pieces) == written(text)


@pytest.mark.process
def test_what_workers_print_has_no_names_and_colours_of_ray():
    """Ray's own switches; the tests turn the first one off."""
    program = "import os, pipelines; from ray._private import ray_constants as r; "
    program += "print(r.RAY_DISABLE_WORKER_LOG_PREFIX, os.environ['RAY_COLOR_PREFIX'])"
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=own, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True 0\n"


PROGRAM = """
from pipelines.cli.command import run_command
run_command(lambda: print("step 1/9  loss 0.5\\nstep 2/9  loss 0.4\\nend"))
"""


@pytest.mark.process
def test_a_log_has_plain_lines_and_a_terminal_one_that_changes():
    command = [sys.executable, "-c", PROGRAM]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert log.stdout == "step 1/9  loss 0.5\nstep 2/9  loss 0.4\nend\n"
    here, there = os.openpty()
    try:
        subprocess.run(command, cwd=ROOT, stdout=there, timeout=PATIENCE, check=True)
        seen = os.read(here, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(here)
        os.close(there)
    assert shown(seen) == ["end", ""]
