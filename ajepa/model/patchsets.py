"""Sets of patches as bits, one bit a patch: rectangles of a whole batch are cut, joined and counted word by word.

Shape legend: F x T grid of patches (frequency, time), N = F * T, W = ceil(N / 64) words, S any shape of a batch.
A set is uint64 [W, *S], words first, so that a count adds whole arrays. Both axes of the grid go around: line i + F
is line i. Patch (f, t) has index f * T + t.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def _lines(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For each axis, the set L_i of all patches before line i, [W, 2F + 1] and [W, 2T + 1].

    L_i xor L_j holds the lines i to j - 1, also around the edge: beyond the last line, L_i is everything but
    the lines it has passed twice.
    """
    tables = []
    for axis, side in enumerate(grid):
        line = np.indices(grid)[axis].ravel()
        place = np.arange(2 * side + 1)[:, None]
        before = np.where(place <= side, line < place, line >= place - side)
        before = np.pad(before, ((0, 0), (0, -len(line) % 64)))
        table = np.ascontiguousarray(np.packbits(before, axis=1, bitorder="little").view(np.uint64).T)
        table.flags.writeable = False
        tables.append(table)
    return tables[0], tables[1]


def _between(table: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The lines first to first + count - 1, [W, *S]; first in [0, side), count in [0, side]."""
    return table.take(first, axis=1) ^ table.take(first + count, axis=1)


def rectangles(
    grid: tuple[int, int], row: np.ndarray, rows: np.ndarray, column: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Rectangles [W, *S] from their first row and column and their sides, which broadcast to S; they go around."""
    row_table, column_table = _lines(grid)
    return _between(row_table, row, rows) & _between(column_table, column, columns)


def sizes(sets: np.ndarray) -> np.ndarray:
    """Patches in each set [W, *S] -> int64 [*S]."""
    return np.bitwise_count(sets).sum(axis=0, dtype=np.int64)


def first_patches(
    grid: tuple[int, int], sets: np.ndarray, row: np.ndarray, column: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """The `count` first patches of each set [W, B], column by column from `column` on, each from `row` on (around).

    Args:
        count: int64 [B], at most the set's size.
    """
    row_table, column_table = _lines(grid)
    whole = largest(lambda n: sizes(sets & _between(column_table, column, n)) <= count, grid[1], len(count))
    kept = sets & _between(column_table, column, whole)
    rest = count - sizes(kept)
    cut = sets & _between(column_table, (column + whole) % grid[1], np.ones_like(whole))  # the column that is divided
    part = largest(lambda n: sizes(cut & _between(row_table, row, n)) <= rest, grid[0], len(count))
    return kept | (cut & _between(row_table, row, part))


def largest(fits: Callable[[np.ndarray], np.ndarray], limit: int, batch: int) -> np.ndarray:
    """Per sample the largest n in [0, limit] that fits, int64 [batch], by bisection: n = 0 and all below fit too."""
    best = np.zeros(batch, np.int64)
    for bit in reversed(range(limit.bit_length())):
        trial = np.minimum(best + (1 << bit), limit)
        best = np.where(fits(trial), trial, best)
    return best


def indices(chosen: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices [B, count] int64 of the true entries of [B, N], `count` in every row."""
    batch, size = chosen.shape
    return np.flatnonzero(chosen).reshape(batch, count) - np.arange(0, batch * size, size)[:, None]


def to_bool(grid: tuple[int, int], sets: np.ndarray) -> np.ndarray:
    """Sets [W, B] as bool [B, N]."""
    words = np.ascontiguousarray(sets.T)
    return np.unpackbits(words.view(np.uint8), axis=1, count=grid[0] * grid[1], bitorder="little").view(bool)
