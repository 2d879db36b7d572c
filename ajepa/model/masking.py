"""Masks in the time-frequency plane (spec 6) and those they are compared with (spec 10), for a whole batch at once.

Shape legend: B samples, F x T grid of patches (frequency, time), N = F * T, M targets, K candidate places.
Patch (f, t) has index f * T + t.
"""

import dataclasses
from functools import lru_cache

import numpy as np

from ajepa import counter_rng
from ajepa.config import MaskConfig

MASK_STREAM, CHOICE_STREAM = 2, 3  # of counter_rng.uniform; block i draws from the stream MASK_STREAM + 256 i
MAX_BLOCKS = 1024  # a mask of ratio 0.95 takes about 12 blocks of the default scale
CURRICULUM_START = 0.01  # c0 of the curriculum


def target_count(config: MaskConfig, grid: tuple[int, int]) -> int:
    """Targets in every mask, exactly: M = round(ratio * N). `Config` sees to 0 < M < N."""
    return round(config.mask_ratio * (grid[0] * grid[1]))  # as `Config` has it: a half may fall either way otherwise


def curriculum_probability(progress: np.ndarray) -> np.ndarray:
    """Share of time-frequency aware masks at a point of training, float64 of the argument's shape.

    p(s) = min(1, sqrt(s (1 - c0^2) / S + c0^2)) with c0 = 0.01 (Fei et al., arXiv:2311.15830): 1 % at the start,
    half after a quarter of the steps, all at the end.

    Args:
        progress: s / S, steps done over the run's total, in [0, 1].
    """
    start = CURRICULUM_START**2
    return np.minimum(1.0, np.sqrt(np.asarray(progress, np.float64) * (1 - start) + start))


def sample_masks(
    config: MaskConfig,
    grid: tuple[int, int],
    seed: int,
    samples: np.ndarray,
    progress: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One mask per sample: (context [B, N - M], targets [B, M]) patch indices, int64, each ascending.

    M is `target_count` under every strategy, so shapes are static. A mask is a pure function of (seed, sample) and,
    under the curriculum, progress: batches can be cut anywhere.

    - multiblock (spec 6): blocks are placed one after the other, each at the best of K drawn places (most new
      patches), until M is reached; the last one is trimmed column by column at its late edge to meet M exactly.
    - single_block: one block of M patches, its sides from `block_aspect`, trimmed the same way.
    - time, frequency: as multiblock, with strips over all mel rows (over all of time) as wide as `block_scale` says.
    - random: M patches without structure.
    - time_frequency, curriculum: see `_time_frequency`, `curriculum_probability`. The curriculum draws for each
      sample, with that probability, a time-frequency aware mask, else the blocks of multiblock.

    Args:
        samples: int64 ids [B].
        progress: steps done over the run's total, [B] in [0, 1]; read by the curriculum alone.

    Raises:
        ValueError: a curriculum without progress, or with progress outside [0, 1].
    """
    count = target_count(config, grid)
    size = grid[0] * grid[1]
    if config.strategy == "random":
        masked = _random(size, count, seed, samples)
    elif config.strategy == "curriculum":
        if progress is None:
            raise ValueError("the masking strategy curriculum needs the progress of training for each sample")
        progress = np.asarray(progress, np.float64)
        if progress.shape != samples.shape or not ((progress >= 0) & (progress <= 1)).all():
            raise ValueError(f"progress must lie within [0, 1], one for each of the {len(samples)} samples")
        aware = counter_rng.uniform(seed, CHOICE_STREAM, samples, 1)[:, 0] < curriculum_probability(progress)
        masked = np.empty((len(samples), size), bool)
        masked[aware] = _time_frequency(config, grid, seed, samples[aware], count)
        masked[~aware] = _blocks(config, grid, seed, samples[~aware], count)
    else:
        sample = _time_frequency if config.strategy == "time_frequency" else _blocks
        masked = sample(config, grid, seed, samples, count)
    return _indices(~masked, size - count), _indices(masked, count)


def block_sides(
    config: MaskConfig, grid: tuple[int, int], scale_draw: np.ndarray, aspect_draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sides of blocks in patches, (rows, columns), int64, from uniform draws in [0, 1).

    With scale s and aspect a = time / frequency on the normalised grid, rows = F sqrt(s / a) and
    columns = T sqrt(s a): each side scales with its axis. Taken literally in patches, the aspect range on an
    8 x 64 grid would ask for blocks over the full height. A side that does not fit is clamped and the other
    keeps the area. Strips have one side in full and the share s of the other; a single block has s = M / N and room
    for all M patches.
    """
    all_rows, all_columns = grid
    scale = config.block_scale[0] + (config.block_scale[1] - config.block_scale[0]) * scale_draw
    aspect = config.block_aspect[0] + (config.block_aspect[1] - config.block_aspect[0]) * aspect_draw
    if config.strategy == "time":
        rows, columns = np.full_like(scale, all_rows), np.rint(all_columns * scale)
    elif config.strategy == "frequency":
        rows, columns = np.rint(all_rows * scale), np.full_like(scale, all_columns)
    elif config.strategy == "single_block":
        count = target_count(config, grid)
        rows = np.rint(all_rows * np.sqrt(count / (all_rows * all_columns) / aspect))
        rows = np.clip(rows, np.ceil(count / all_columns), all_rows)
        columns = np.ceil(count / rows)
    else:
        rows = np.clip(np.rint(all_rows * np.sqrt(scale / aspect)), 1, all_rows)
        columns = np.rint(scale * all_rows * all_columns / rows)
    return np.clip(rows, 1, all_rows).astype(np.int64), np.clip(columns, 1, all_columns).astype(np.int64)


def _blocks(config: MaskConfig, grid: tuple[int, int], seed: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Blocks or strips until `count` patches are masked, the last one trimmed: bool [B, N]."""
    masked = np.zeros((len(samples), *grid), bool)
    active, missing = np.arange(len(samples)), np.full(len(samples), count)  # samples that lack patches, and how many
    for block in range(MAX_BLOCKS):
        if not len(active):
            break
        draw = counter_rng.uniform(seed, MASK_STREAM + 256 * block, samples[active], 2 + 2 * config.candidates)
        rows, columns = block_sides(config, grid, draw[:, 0], draw[:, 1])
        if block == MAX_BLOCKS - 1:  # pathological settings: fill up from a drawn place on
            rows, columns = np.full_like(rows, grid[0]), np.full_like(columns, grid[1])
        uncovered = ~masked[active]
        row, column = _best_place(config, grid, uncovered, rows, columns, draw[:, 2:])
        new = uncovered & _lines(grid[0], row, rows)[:, :, None] & _lines(grid[1], column, columns)[:, None, :]
        size = new.sum(axis=(1, 2))
        last = size >= missing
        masked[active[~last]] |= new[~last]
        masked[active[last]] |= _trimmed(new[last], row[last], column[last], missing[last])
        active, missing = active[~last], (missing - size)[~last]
    return masked.reshape(len(samples), grid[0] * grid[1])


def _lines(side: int, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The lines first to first + count - 1 of an axis that goes around: bool [*S, side] from two int arrays [*S]."""
    return _line_table(side)[first, count]


@lru_cache(maxsize=16)
def _line_table(side: int) -> np.ndarray:
    """Every interval of an axis that goes around: bool [first, count, line]. A look-up is faster than arithmetic."""
    line, first, count = np.arange(side), np.arange(side)[:, None, None], np.arange(side + 1)[:, None]
    return (line - first) % side < count


def _order(grid: tuple[int, int], row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Rank [B, F, T] of each patch, column by column from `column` [B] on, each from `row` [B] on; both go around."""
    column_rank = (np.arange(grid[1]) - column[:, None]) % grid[1]
    row_rank = (np.arange(grid[0]) - row[:, None]) % grid[0]
    return column_rank[:, None, :] * grid[0] + row_rank[:, :, None]


def _trimmed(block: np.ndarray, row: np.ndarray, column: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The first `count` [B] patches of blocks [B, F, T], column by column from `column` on, each from `row` on."""
    rows, columns = block.shape[1:]
    order = (np.arange(columns) + column[:, None]) % columns
    cumulated = np.take_along_axis(block.sum(axis=1), order, axis=1).cumsum(axis=1)
    whole = (cumulated <= count[:, None]).sum(axis=1)  # columns that are kept whole
    kept = block & _lines(columns, column, whole)[:, None, :]
    missing = count - kept.sum(axis=(1, 2))
    each, divided = np.arange(len(block))[:, None], (column + whole)[:, None] % columns
    order = (np.arange(rows) + row[:, None]) % rows
    part = block[each, order, divided]
    kept[each, order, divided] |= part & (part.cumsum(axis=1) <= missing[:, None])
    return kept


def _best_place(
    config: MaskConfig,
    grid: tuple[int, int],
    uncovered: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    draw: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """First row and column [B] of the block that covers most of `uncovered` [B, F, T], among K places of draws
    [B, 2K]."""
    lowest, earliest = (
        (place * (side if config.placement == "wrap" else (side - length + 1)[:, None])).astype(np.int64)
        for side, length, place in (
            (grid[0], rows, draw[:, : config.candidates]),
            (grid[1], columns, draw[:, config.candidates :]),
        )
    )  # [B, K]
    in_rows = _lines(grid[0], lowest, rows[:, None]).astype(np.float32)  # [B, K, F]
    in_columns = _lines(grid[1], earliest, columns[:, None])  # [B, K, T]
    covered = np.einsum("bkt,bkt->bk", in_rows @ uncovered.astype(np.float32), in_columns)  # counts, exact
    best = covered.argmax(axis=1)
    each = np.arange(len(best))
    return lowest[each, best], earliest[each, best]


def _time_frequency(
    config: MaskConfig, grid: tuple[int, int], seed: int, samples: np.ndarray, count: int
) -> np.ndarray:
    """Time-frequency aware masks: blocks that grow along their rows and columns, bool [B, N].

    Fei et al. (arXiv:2311.15830) end their curriculum in masks that respect how strongly a spectrogram is correlated
    in local time and frequency. This is an interpretation of that: beside the target blocks, what sounds at the same
    time or at the same frequency is kept from the context. Taken without limit, that leaves a number of patches that
    varies and, on an 8 x 64 grid, hardly any. So `time_frequency_blocks` blocks, placed as in multiblock, grow arms
    along time in their own rows and along frequency in their own columns, at one pace on the normalised grid, until M
    patches are masked. The last step of growth is trimmed column by column from the first block's first column on;
    where whole rows and columns are not enough, the other patches follow in that order. The arms are predicted like
    the blocks, so that context and targets stay complements.
    """
    scale = dataclasses.replace(config, strategy="multiblock", block_scale=config.time_frequency_scale)
    uncovered = np.ones((len(samples), *grid), bool)
    step = np.full((len(samples), *grid), grid[1] + 1, np.int64)  # of growth in which each patch is masked
    for block in range(config.time_frequency_blocks):
        draw = counter_rng.uniform(seed, MASK_STREAM + 256 * block, samples, 2 + 2 * config.candidates)
        rows, columns = block_sides(scale, grid, draw[:, 0], draw[:, 1])
        row, column = _best_place(config, grid, uncovered, rows, columns, draw[:, 2:])
        below, beside = _distance(config, grid[0], row, rows), _distance(config, grid[1], column, columns)
        arm = -(-below * grid[1] // grid[0])  # columns that an arm along time has grown when this one gets so far
        in_rows, in_columns = (below == 0)[:, :, None], (beside == 0)[:, None, :]
        uncovered &= ~(in_rows & in_columns)
        np.minimum(step, np.where(in_rows, beside[:, None, :], grid[1] + 1), out=step)
        np.minimum(step, np.where(in_columns, arm[:, :, None], grid[1] + 1), out=step)
        if block == 0:
            order = _order(grid, row, column)
    size = grid[0] * grid[1]
    key = (step * size + order).reshape(len(samples), size)
    return key <= np.partition(key, count - 1, axis=1)[:, count - 1 : count]


def _distance(config: MaskConfig, side: int, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Lines [B, side] between each line and the lines first to first + count - 1 [B], 0 inside; around the axis where
    blocks may go around it."""
    line = np.arange(side)
    if config.placement == "wrap":
        behind = (line - first[:, None]) % side - (count[:, None] - 1)
        return np.where(behind <= 0, 0, np.minimum(behind, (first[:, None] - line) % side))
    return np.maximum(np.maximum(first[:, None] - line, line - (first + count - 1)[:, None]), 0)


def _random(size: int, count: int, seed: int, samples: np.ndarray) -> np.ndarray:
    """`count` of `size` patches without structure: bool [B, N]."""
    draw = counter_rng.uniform(seed, MASK_STREAM, samples, size)
    # Integers made unique by the patch's index: a tie could not change the count.
    key = (draw * (1 << 40)).astype(np.int64) * size + np.arange(size)
    return key <= np.partition(key, count - 1, axis=1)[:, count - 1 : count]


def _indices(chosen: np.ndarray, count: int) -> np.ndarray:
    """Ascending indices [B, count] int64 of the true entries of [B, N], `count` in every row."""
    batch, size = chosen.shape
    return np.flatnonzero(chosen).reshape(batch, count) - np.arange(0, batch * size, size)[:, None]
