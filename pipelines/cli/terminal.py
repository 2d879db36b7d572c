"""What a command prints while it trains: in a terminal one line that is written over, in a log a line each."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

PASSING = re.compile(r"(\S+  )?step \d+/\d+  loss ")  # a report, as `reporter.line` has it
LASTING = re.compile(r"effective rank|validation_|validation ")  # one that stays: something was measured


class LiveLines(io.TextIOBase):
    """Writes passing lines over each other."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal
        self._begun, self._passing = "", False  # of a line that is not complete; whether a passing one stands there

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._clear()
            self._passing = bool(PASSING.match(line)) and not LASTING.search(line)
            self.terminal.write(line if self._passing else f"{line}\n")
        return len(text)

    def flush(self) -> None:
        if self._begun:
            self._clear()
            self.terminal.write(self._begun)
            self._begun = ""
        self.terminal.flush()

    def close_line(self) -> None:
        """Leave what stands there."""
        self.flush()
        if self._passing:
            self.terminal.write("\n")
            self._passing = False
        self.terminal.flush()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.terminal.fileno()

    def __getattr__(self, name: str) -> Any:  # encoding and the like
        return getattr(self.terminal, name)

    def _clear(self) -> None:
        if self._passing:
            self.terminal.write("\r\x1b[K")
            self._passing = False


@contextlib.contextmanager
def live_lines() -> Iterator[None]:
    """Inside, reports of training are written over each other if standard output is a terminal."""
    before = sys.stdout
    if not before.isatty():
        yield
        return
    sys.stdout = live = LiveLines(before)
    try:
        yield
    finally:
        live.close_line()
        sys.stdout = before
