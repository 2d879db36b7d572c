"""What the demo says of itself: how long it will take, and how much memory it took."""

import re
import subprocess
import sys

import pytest
from helpers.faults import wait_for
from helpers.runs import tiny_config

from pipelines.demo import DemoArgs
from pipelines.jobs import demo

HOLD = """
import os, sys, time
megabytes, ready, leave = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if len(sys.argv) > 4 and os.fork():  # an orphan: no part of anybody's tree
    os._exit(0)
held = bytearray(os.urandom(1 << 20) * megabytes)
open(ready, "w").close()
while not os.path.exists(leave):
    time.sleep(0.01)
"""


def test_it_says_how_long_it_will_take(monkeypatch, capsys):
    monkeypatch.setattr(demo, "demo_config", lambda args: tiny_config(max_steps=args.max_steps, precision="fp32"))
    demo.announce_time(DemoArgs(max_steps=10_000, num_workers=1))
    said = re.search(
        r"about (\d+) min on this machine: a training step takes (\d+\.\d+) s .*\(float32\)", capsys.readouterr().out
    )
    assert said and int(said[1]) >= round(10_000 * (float(said[2]) - 0.005) / 60)


def test_the_time_grows_with_the_steps_their_length_and_a_slow_python():
    base = demo.expected_minutes(100, 0.3, 10.0)
    assert demo.expected_minutes(200, 0.3, 10.0) - base == pytest.approx(100 * 0.3 / 60)
    assert demo.expected_minutes(100, 0.4, 10.0) - base == pytest.approx(100 * 0.1 / 60)
    assert demo.expected_minutes(100, 0.3, 10.5) - base == pytest.approx(0.5 * demo.OTHER_STAGES / 60)


@pytest.mark.process
def test_memory_is_that_of_its_own_processes(tmp_path):
    ready, leave = [tmp_path / name for name in ("child", "orphan")], tmp_path / "leave"
    command = [sys.executable, "-c", HOLD]
    try:
        with demo.MemoryWatch() as memory:
            subprocess.run([*command, "900", str(ready[1]), str(leave), "orphan"], check=True)
            wait_for(ready[1].exists, "the orphan")
            subprocess.Popen([*command, "300", str(ready[0]), str(leave)])
            wait_for(ready[0].exists, "the child")
            wait_for(lambda: memory.peak_gb > 0.3, "its memory to be seen")
    finally:
        leave.touch()
    assert memory.peak_gb < 0.8
