"""What fails in Ray by no mistake of the user: one line, exit code 1, and where the rest is."""

import logging
import os
import signal
import time
from pathlib import Path

import pytest

from pipelines.cli.command import run_command
from pipelines.rayjobs.data_job import run_blocks
from pipelines.rayjobs.ray_internals import FirstLine, without_traceback
from pipelines.rayjobs.train_job import Workers, fit

TRACEBACK = """Error in training function:
Traceback (most recent call last):
  File "/a/b.py", line 3, in train
    raise ValueError("this")
ValueError: this
and more
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one line", "one line"),
        ("two\nlines", "two\nlines"),
        (TRACEBACK, "Error in training function: ValueError: this"),
        (TRACEBACK.replace("ValueError: this", "a.b.GetTimeoutError: this"),
         "Error in training function: a.b.GetTimeoutError: this"),
        (TRACEBACK.partition("\n")[2], "ValueError: this"),
        ("failed\nTraceback (most recent call last):\n  cut", "failed"),
    ],
)  # fmt: skip
def test_a_traceback_becomes_one_line(text, line):
    assert without_traceback(text) == line


def test_and_that_of_a_record():
    try:
        raise KeyError("a")
    except KeyError as error:
        about = (type(error), error, error.__traceback__)
    record = logging.LogRecord("ray", logging.ERROR, __file__, 1, "lost %s", ("it",), about)
    assert FirstLine(logging.Formatter()).format(record) == "lost it: KeyError: 'a'"


def refused(work, capfd):
    with pytest.raises(SystemExit) as stop:
        run_command(work)
    printed = capfd.readouterr()
    assert stop.value.code == 1, printed
    # A handler of Ray may have kept the stream of an earlier test, which is closed.
    assert "Traceback" not in printed.out + printed.err.partition("--- Logging error ---")[0], printed
    (line,) = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    what, _, folder = line.removeprefix("failed: ").partition(" (all that Ray logged of it is in ")
    assert Path(folder.removesuffix(" on each node)")).is_dir()
    return what


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fail", "what"),
    [
        (lambda: int("no number"), "worker 0: ValueError: invalid literal for int() with base 10: 'no number'"),
        (lambda: time.sleep(3) or os.kill(os.getpid(), signal.SIGKILL), "worker 0: ActorDiedError: The actor died"),
    ],
    ids=["raises", "dies"],
)
def test_a_worker_that_fails(fail, what, ray_session, tmp_path, capfd):
    workers = Workers(number=1, threads=1, device="cpu", max_failures=0)
    found = refused(lambda: fit(lambda _: fail(), str(tmp_path), workers, []), capfd)
    assert what in found


@pytest.mark.ray
def test_a_task_that_fails(ray_session, capfd):
    found = refused(lambda: run_blocks("test", [0, 1], 2, lambda batch: batch["nothing"]), capfd)
    assert found.startswith("KeyError: 'nothing'")
