"""Masks in the time-frequency plane (spec 6) and those they are compared with (spec 10), for a whole batch at once.

Shape legend: B samples, F x T grid of patches (frequency, time), N = F * T, M targets, K candidate places,
W words of a set of patches (patchsets.py). Patch (f, t) has index f * T + t.
"""

import dataclasses

import numpy as np

from ajepa import counter_rng
from ajepa.config import MaskConfig
from ajepa.model import patchsets

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
    wanted = target_count(config, grid)
    size = grid[0] * grid[1]
    if config.strategy == "random":
        masked = _random(size, wanted, seed, samples)
    elif config.strategy == "curriculum":
        if progress is None:
            raise ValueError("the masking strategy curriculum needs the progress of training for each sample")
        progress = np.asarray(progress, np.float64)
        if progress.shape != samples.shape or not ((progress >= 0) & (progress <= 1)).all():
            raise ValueError(f"progress must lie within [0, 1], one for each of the {len(samples)} samples")
        aware = counter_rng.uniform(seed, CHOICE_STREAM, samples, 1)[:, 0] < curriculum_probability(progress)
        masked = np.empty((len(samples), size), bool)
        masked[aware] = patchsets.to_bool(grid, _time_frequency(config, grid, seed, samples[aware], wanted))
        masked[~aware] = patchsets.to_bool(grid, _blocks(config, grid, seed, samples[~aware], wanted))
    else:
        sample = _time_frequency if config.strategy == "time_frequency" else _blocks
        masked = patchsets.to_bool(grid, sample(config, grid, seed, samples, wanted))
    return patchsets.indices(~masked, size - wanted), patchsets.indices(masked, wanted)


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
        wanted = target_count(config, grid)
        rows = np.rint(all_rows * np.sqrt(wanted / (all_rows * all_columns) / aspect))
        rows = np.clip(rows, np.ceil(wanted / all_columns), all_rows)
        columns = np.ceil(wanted / rows)
    else:
        rows = np.clip(np.rint(all_rows * np.sqrt(scale / aspect)), 1, all_rows)
        columns = np.rint(scale * all_rows * all_columns / rows)
    return np.clip(rows, 1, all_rows).astype(np.int64), np.clip(columns, 1, all_columns).astype(np.int64)


def _blocks(config: MaskConfig, grid: tuple[int, int], seed: int, samples: np.ndarray, wanted: int) -> np.ndarray:
    """Blocks or strips until `wanted` patches are masked, the last one trimmed: sets [W, B]."""
    words = -(-grid[0] * grid[1] // 64)
    masked, last = np.zeros((words, len(samples)), np.uint64), np.zeros((words, len(samples)), np.uint64)
    last_row, last_column, missing = (np.zeros(len(samples), np.int64) for _ in range(3))
    active, short = np.arange(len(samples)), np.full(len(samples), wanted)  # samples short of their count, and by it
    for block in range(MAX_BLOCKS):
        if not len(active):
            break
        draw = counter_rng.uniform(seed, MASK_STREAM + 256 * block, samples[active], 2 + 2 * config.candidates)
        rows, columns = block_sides(config, grid, draw[:, 0], draw[:, 1])
        if block == MAX_BLOCKS - 1:  # pathological settings: fill up from a drawn place on
            rows, columns = np.full_like(rows, grid[0]), np.full_like(columns, grid[1])
        open_patches = ~masked[:, active]
        row, column = _best_place(config, grid, open_patches, rows, columns, draw[:, 2:])
        new = patchsets.rectangles(grid, row, rows, column, columns) & open_patches
        size = patchsets.sizes(new)
        ends = size >= short
        done = active[ends]
        last[:, done], missing[done] = new[:, ends], short[ends]
        last_row[done], last_column[done] = row[ends], column[ends]
        active, short = active[~ends], (short - size)[~ends]
        masked[:, active] |= new[:, ~ends]
    return masked | patchsets.first_patches(grid, last, last_row, last_column, missing)


def _best_place(
    config: MaskConfig,
    grid: tuple[int, int],
    open_patches: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    draw: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """First row and column [b] of the block that covers most of the sets [W, b], among K places of draws [b, 2K]."""
    lowest, earliest = (
        (place * (side if config.placement == "wrap" else (side - length + 1)[:, None])).astype(np.int64)
        for side, length, place in (
            (grid[0], rows, draw[:, : config.candidates]),
            (grid[1], columns, draw[:, config.candidates :]),
        )
    )  # [b, K]
    candidates = patchsets.rectangles(grid, lowest, rows[:, None], earliest, columns[:, None])  # [W, b, K]
    best = patchsets.sizes(candidates & open_patches[:, :, None]).argmax(axis=1)
    each = np.arange(len(best))
    return lowest[each, best], earliest[each, best]


def _time_frequency(
    config: MaskConfig, grid: tuple[int, int], seed: int, samples: np.ndarray, wanted: int
) -> np.ndarray:
    """Time-frequency aware masks: blocks that grow along their rows and columns, sets [W, B].

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
    blocks = np.zeros((4, config.time_frequency_blocks, len(samples)), np.int64)  # row, rows, column, columns
    open_patches = np.full((-(-grid[0] * grid[1] // 64), len(samples)), ~np.uint64(0))
    for i, block in enumerate(blocks.swapaxes(0, 1)):
        draw = counter_rng.uniform(seed, MASK_STREAM + 256 * i, samples, 2 + 2 * config.candidates)
        block[1], block[3] = block_sides(scale, grid, draw[:, 0], draw[:, 1])
        block[0], block[2] = _best_place(config, grid, open_patches, block[1], block[3], draw[:, 2:])
        open_patches &= ~patchsets.rectangles(grid, *block)

    whole_grid = patchsets.rectangles(grid, *np.array([0, grid[0], 0, grid[1]]))[:, None]

    def grown(step: np.ndarray) -> np.ndarray:
        """Sets after a step [B] of growth: 0 nothing, 1 the blocks, 1 + n with arms of n columns, T + 2 everything."""
        row, rows, column, columns = blocks
        arm = np.clip(step - 1, 0, grid[1])
        tall = _stretched(config, row, rows, arm * grid[0] // grid[1], grid[0])
        wide = _stretched(config, column, columns, arm, grid[1])
        crosses = patchsets.rectangles(grid, *tall, column, columns) | patchsets.rectangles(grid, row, rows, *wide)
        masked = np.where(step > 0, np.bitwise_or.reduce(crosses, axis=1), np.uint64(0))
        return np.where(step > grid[1] + 1, whole_grid, masked)

    step = patchsets.largest(lambda n: patchsets.sizes(grown(n)) <= wanted, grid[1] + 2, len(samples))
    masked = grown(step)
    edge, missing = grown(step + 1) & ~masked, wanted - patchsets.sizes(masked)
    return masked | patchsets.first_patches(grid, edge, blocks[0, 0], blocks[2, 0], missing)


def _stretched(
    config: MaskConfig, first: np.ndarray, length: np.ndarray, arm: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals with an arm at both ends, as (first, length); around the axis or cut at its ends."""
    if config.placement == "wrap":
        return (first - arm) % side, np.minimum(length + 2 * arm, side)
    start = np.maximum(first - arm, 0)
    return start, np.minimum(first + length + arm, side) - start


def _random(size: int, wanted: int, seed: int, samples: np.ndarray) -> np.ndarray:
    """`wanted` of `size` patches without structure: bool [B, N]."""
    draw = counter_rng.uniform(seed, MASK_STREAM, samples, size)
    # Integers made unique by the patch's index: a tie could not change the count.
    key = (draw * (1 << 40)).astype(np.int64) * size + np.arange(size)
    return key <= np.partition(key, wanted - 1, axis=1)[:, wanted - 1 : wanted]
