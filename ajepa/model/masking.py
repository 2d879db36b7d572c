"""Multi-block masks in the time-frequency plane (sec. 4.4), for a whole batch at once.

Shape legend: B samples, F x T grid of patches (frequency, time), N = F * T, K candidate places.
Patch (f, t) has index f * T + t.
"""

import numpy as np

from ajepa import rng
from ajepa.config import MaskConfig

MASK_STREAM = 2  # of rng.uniform
MAX_BLOCKS = 32  # a mask of ratio 0.95 takes about 12


def target_count(config: MaskConfig, grid: tuple[int, int]) -> int:
    """Targets in every mask, exactly: round(ratio * N)."""
    return round(config.mask_ratio * grid[0] * grid[1])


def block_sides(
    config: MaskConfig, grid: tuple[int, int], scale_draw: np.ndarray, aspect_draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sides of blocks in patches, (rows, columns), int64, from uniform draws in [0, 1).

    With scale s and aspect a = time / frequency on the normalised grid, rows = F sqrt(s / a) and
    columns = T sqrt(s a): each side scales with its axis. Taken literally in patches, the aspect range on an
    8 x 64 grid would ask for blocks over the full height. A side that does not fit is clamped and the other
    keeps the area.
    """
    rows_in_grid, columns_in_grid = grid
    scale = config.block_scale[0] + (config.block_scale[1] - config.block_scale[0]) * scale_draw
    aspect = config.block_aspect[0] + (config.block_aspect[1] - config.block_aspect[0]) * aspect_draw
    rows = np.clip(np.rint(rows_in_grid * np.sqrt(scale / aspect)), 1, rows_in_grid)
    columns = np.clip(np.rint(scale * rows_in_grid * columns_in_grid / rows), 1, columns_in_grid)
    return rows.astype(np.int64), columns.astype(np.int64)


def sample_masks(
    config: MaskConfig, grid: tuple[int, int], seed: int, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One mask per sample: (context [B, N - M], targets [B, M]) patch indices, int64, each ascending.

    M is `target_count`: blocks are placed one after the other, each at the best of K drawn places (most new
    patches), until M is reached; the last one is trimmed column by column at its late edge to meet M exactly.
    A mask is a pure function of (seed, sample), so shapes are static and batches can be cut anywhere.

    Args:
        samples: int64 ids [B].
    """
    rows_in_grid, columns_in_grid = grid
    size = rows_in_grid * columns_in_grid
    wanted = target_count(config, grid)
    draws_per_block = 2 + 2 * config.candidates
    draws = rng.uniform(seed, MASK_STREAM, samples, MAX_BLOCKS * draws_per_block)
    draws = draws.reshape(len(samples), MAX_BLOCKS, draws_per_block)
    masked = np.zeros((len(samples), rows_in_grid, columns_in_grid), bool)
    active = np.arange(len(samples))  # samples still short of their count
    for block in range(MAX_BLOCKS):
        draw = draws[active, block]
        rows, columns = block_sides(config, grid, draw[:, 0], draw[:, 1])
        row_offset, column_offset = _offsets(config, grid, rows, columns, draw[:, 2:])  # [b, K, F], [b, K, T]
        in_rows, in_columns = row_offset < rows[:, None, None], column_offset < columns[:, None, None]
        open_patches = (~masked[active]).astype(np.float32)
        # New patches of candidate k: in_rows[k]^T @ open @ in_columns[k].
        new_in_row = np.matmul(open_patches, in_columns.astype(np.float32).transpose(0, 2, 1))  # [b, F, K]
        gain = (in_rows.transpose(0, 2, 1) * new_in_row).sum(axis=1)  # [b, K]
        best, each = gain.argmax(axis=1), np.arange(len(active))
        chosen = in_rows[each, best][:, :, None] & in_columns[each, best][:, None, :] & ~masked[active]
        missing = wanted - masked[active].sum(axis=(1, 2))
        over = chosen.sum(axis=(1, 2)) > missing
        if over.any():
            order = column_offset[each, best][:, None, :] * rows_in_grid + row_offset[each, best][:, :, None]
            chosen[over] = _first(chosen[over], order[over], missing[over])
        masked[active] |= chosen
        active = active[missing > chosen.sum(axis=(1, 2))]
        if not len(active):
            break
    if len(active):  # pathological settings: fill up with the patches next in order
        chosen = ~masked[active]
        order = np.broadcast_to(np.arange(size).reshape(1, *grid), chosen.shape)
        masked[active] |= _first(chosen, order, wanted - masked[active].sum(axis=(1, 2)))
    flat = masked.reshape(len(samples), size)
    split = np.argsort(flat, axis=1, kind="stable")  # unmasked first, each part ascending
    return split[:, : size - wanted], split[:, size - wanted :]


def _offsets(
    config: MaskConfig, grid: tuple[int, int], rows: np.ndarray, columns: np.ndarray, draw: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every grid row [b, K, F] and column [b, K, T] behind a block's first one, for K places."""
    offsets = []
    for side, length, place in (
        (grid[0], rows, draw[:, : config.candidates]),
        (grid[1], columns, draw[:, config.candidates :]),
    ):
        places = side if config.placement == "wrap" else (side - length + 1)[:, None]
        first = np.floor(place * places).astype(np.int64)[:, :, None]
        offsets.append((np.arange(side) - first) % side)
    return offsets[0], offsets[1]


def _first(chosen: np.ndarray, order: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Keep the `count` chosen patches of each sample [b, F, T] that come first in `order`."""
    key = np.where(chosen, order, np.iinfo(np.int64).max).reshape(len(chosen), -1)
    rank = np.argsort(np.argsort(key, axis=1, kind="stable"), axis=1, kind="stable")
    return chosen & (rank < count[:, None]).reshape(chosen.shape)
