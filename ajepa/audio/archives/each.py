"""A function of each file of many, all at work at once."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AT_ONCE = 16
Each = Callable[[Callable[[str], Any], Sequence[str]], Iterable[Any]]  # results in the order of the files


def in_threads(function: Callable[[str], Any], files: Sequence[str]) -> list[Any]:
    """By threads of this process."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, files))
