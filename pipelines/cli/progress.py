"""Live progress: a bar in a terminal, and now and then a line where output goes to a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_EVERY = 10.0  # seconds between two lines


class Progress:
    """Counts work done and failed, with the rate and the time left.

    >>> with Progress("preprocess", total=400) as progress:
    ...     progress.update(32, failed=1)
    """

    def __init__(self, what: str, total: int, unit: str = "clip") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.failed = 0
        self._start = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # when work first came in, and how much
        self._bar = tqdm(total=total, unit=unit, desc=what, mininterval=0.5) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int, failed: int = 0) -> None:
        """`count` more are done, of which `failed` have failed."""
        self.done += count
        self.failed += failed
        now = time.monotonic()
        self._first = self._first or (now, self.done)
        if self._bar is not None:
            self._bar.update(count)
            if self.failed:
                self._bar.set_postfix(failed=self.failed)
        elif now - self._printed >= LOG_EVERY:
            self._printed = now
            print(self.line(self._rate(now, *self._first)), file=sys.stderr, flush=True)

    def _rate(self, now: float, first: float, at_first: int) -> float:
        """Done a second; the start-up until the first result does not count where there are later ones."""
        since, done = (first, self.done - at_first) if self.done > at_first else (self._start, self.done)
        return done / max(now - since, 1e-9)

    def line(self, rate: float) -> str:
        """Where things stand, at `rate` a second."""
        left = (self.total - self.done) / rate if rate else float("inf")
        share = self.done / max(self.total, 1)
        return (
            f"{self.what}: {self.done} of {self.total} {self.unit}s ({share:.0%}), {rate:.0f} {self.unit}s/s, "
            f"{self.failed} failed, about {span(left)} left"
        )


def span(seconds: float) -> str:
    """A time as people say it: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
