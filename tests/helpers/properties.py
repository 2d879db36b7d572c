"""How many examples a property is tried on: a small fixed table in every run, a larger one in `make test-nightly`."""

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import settings

NIGHTLY = os.environ.get("AJEPA_NIGHTLY") == "1"
CI_SHARE = 5  # of the nightly examples, one in so many is tried in every run
FEWEST = 10

Test = TypeVar("Test", bound=Callable[..., None])


def nightly(count: int) -> int:
    """`count` in a nightly run, else a fifth of it and at least FEWEST."""
    return count if NIGHTLY else min(count, max(FEWEST, count // CI_SHARE))


def examples(count: int) -> Callable[[Test], Test]:
    """Decorates a property that is tried on `count` examples in a nightly run and on a fifth of them else."""
    return settings(max_examples=nightly(count))
