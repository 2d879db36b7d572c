"""Progress where output goes to a log: lines with counts, rate and the time left."""

import pytest

from pipelines.cli import progress
from pipelines.cli.progress import Progress


def test_a_line_says_where_things_stand():
    count = Progress("preprocess", total=400)
    count.update(100, failed=3)
    assert count.line(10.0) == "preprocess: 100 of 400 clips (25%), 10 clips/s, 3 failed, about 30 s left"


def test_long_times_are_minutes_and_hours():
    count = Progress("preprocess", total=1_000_000)
    count.update(1_000)
    assert count.line(1_000.0).endswith("about 17 min left") and count.line(10.0).endswith("about 27.8 h left")


def test_starting_up_does_not_slow_the_rate():
    count = Progress("preprocess", total=100)
    count.update(10)
    first, at_first = count._first
    assert count._rate(count._start + 5.0, first, at_first) == pytest.approx(2.0)
    count.update(20)
    assert count._rate(first + 4.0, first, at_first) == pytest.approx(5.0)


def test_lines_come_now_and_then(capsys, monkeypatch):
    with Progress("verify", total=3) as count:
        count.update(1)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
        count.update(1, failed=1)
        count.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" clips")[0] for line in lines] == ["verify: 2 of 3", "verify: 3 of 3"]
