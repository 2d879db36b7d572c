"""The order of an epoch and the clips held out of it: pure functions of the seed and of the row groups' sizes.

The numbers come from ajepa.counter_rng and every sort is stable, so no other version of a library changes an order.
"""

from dataclasses import dataclass

import numpy as np

from ajepa import counter_rng

GROUP_STREAM, ROW_STREAM, ROUND_STREAM, HOLDOUT_STREAM = 4, 5, 6, 7  # of counter_rng.uniform


@dataclass(frozen=True)
class EpochOrder:
    """One epoch: the row at each position, and the column it comes from."""

    rows: np.ndarray  # [n] int64
    columns: np.ndarray  # [n] int32, below the window


def heldout_rows(seed: int, num_clips: int, count: int) -> np.ndarray:
    """`count` rows of `num_clips`, sorted int64."""
    draws = counter_rng.uniform(seed, HOLDOUT_STREAM, np.arange(num_clips), 1)[:, 0]
    return np.sort(np.argsort(draws, kind="stable")[:count])


def epoch_order(seed: int, epoch: int, rows: np.ndarray, groups: np.ndarray, window: int) -> EpochOrder:
    """Shuffle an epoch so that at any position about `window` row groups are in use, each for as short as possible.

    1. Row groups are put in random order, with their rows shuffled inside them.
    2. The result is cut into `window` columns of equal length.
    3. Columns are rotated, so that they do not all come to a new row group in the same round.
    4. Round t takes the t-th row of every column. The order of columns in a round is random, and every stretch of it is
       spread evenly over the columns: a batch draws from all parts of the window alike, and a rank that takes a fixed
       share of the columns meets only that share of the row groups.

    Example: row groups (0, 1, 2) and (3, 4, 5), window 2, seed 0, epoch 0. After step 3 the columns are 3 5 4 and
    0 2 1. The rounds of step 4 are (3 0) (2 5) (1 4), so the epoch is 3 0 2 5 1 4.

    Args:
        rows: [n] int64, the rows of an epoch in storage order.
        groups: [n] int64, the row group of each.
        window: columns, at least 1.
    """
    n = len(rows)
    window = min(window, n)
    shuffled, largest = _shuffled_groups(seed, epoch, groups)

    cuts = np.arange(window + 1) * n // window  # column c holds the places cuts[c] to cuts[c + 1] of `shuffled`
    lengths = np.diff(cuts)  # [window], equal up to one
    num_rounds = int(lengths.max())
    size = 1 << (window - 1).bit_length()
    draws = counter_rng.uniform(seed, ROUND_STREAM, epoch * num_rounds + np.arange(num_rounds), size)
    columns = owen_scrambled(draws)  # [num_rounds, size]: the columns of each round in their order
    rounds = np.broadcast_to(np.arange(num_rounds)[:, None], columns.shape)
    exists = columns < window
    rounds, columns = rounds[exists], columns[exists]
    exists = rounds < lengths[columns]  # not so in the last round of a column that is one shorter
    rounds, columns = rounds[exists], columns[exists]
    rotation = (np.arange(window) * largest // window - cuts[:-1]) % largest  # [window] rounds
    places = cuts[columns] + (rounds + rotation[columns]) % lengths[columns]
    return EpochOrder(rows[shuffled[places]], columns.astype(np.int32))


def _shuffled_groups(seed: int, epoch: int, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """(places 0..n-1 with row groups in random order and shuffled inside them, rows of the largest group)."""
    n = len(groups)
    distinct, sizes = np.unique(groups, return_counts=True)
    group_draws = counter_rng.uniform(seed, GROUP_STREAM, epoch * len(distinct) + np.arange(len(distinct)), 1)[:, 0]
    group_rank = np.argsort(np.argsort(group_draws, kind="stable"), kind="stable")
    row_draws = counter_rng.uniform(seed, ROW_STREAM, epoch * n + np.arange(n), 1)[:, 0]
    return np.argsort(np.repeat(group_rank, sizes) + row_draws, kind="stable"), int(sizes.max())


def owen_scrambled(draws: np.ndarray) -> np.ndarray:
    """Random permutations of 0..2^k-1 whose stretches are spread evenly: every aligned stretch of 2^j positions has
    one number of each of the 2^j equal parts of the range. The van der Corput sequence with nested scrambling
    (Owen, 1995).

    Args:
        draws: [..., 2^k] uniform in [0, 1).

    Returns:
        int64 [..., 2^k].
    """
    positions = np.arange(draws.shape[-1])
    numbers = np.zeros(draws.shape, np.int64)
    node = np.ones_like(positions)  # of the binary tree, by the bits of the position read so far
    for level in range(len(positions).bit_length() - 1):
        bit = positions >> level & 1
        numbers = 2 * numbers + (bit ^ (draws[..., node] < 0.5))
        node = 2 * node + bit
    return numbers
