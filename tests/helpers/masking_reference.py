"""Masks by plain loops, one sample at a time: what sample_masks is held to. Same draws, none of its code."""

import math

import numpy as np

from ajepa import counter_rng
from ajepa.config import MaskConfig

Patches = set[tuple[int, int]]  # (row, column)


def reference_mask(config: MaskConfig, grid: tuple[int, int], seed: int, sample: int) -> list[int]:
    """The target indices of one sample under multiblock, single_block, time, frequency or time_frequency."""
    everything = {(f, t) for f in range(grid[0]) for t in range(grid[1])}
    wanted = round(config.mask_ratio * len(everything))
    if config.strategy == "time_frequency":
        masked = grown(config, grid, seed, sample, wanted, everything)
    else:
        masked = blocks(config, grid, seed, sample, wanted)
    return sorted(f * grid[1] + t for f, t in masked)


def blocks(config: MaskConfig, grid: tuple[int, int], seed: int, sample: int, wanted: int) -> Patches:
    masked: Patches = set()
    for block in range(1024):
        draw = draws(config, seed, sample, block)
        rows, columns = sides(config, grid, config.block_scale, draw[0], draw[1], wanted)
        if block == 1023:
            rows, columns = grid
        row, column = best_place(config, grid, masked, rows, columns, draw[2:])
        new = rectangle(grid, row, rows, column, columns) - masked
        if len(masked) + len(new) >= wanted:
            return masked | first(grid, new, row, column, wanted - len(masked))
        masked |= new
    raise AssertionError("the last block covers the grid")


def grown(
    config: MaskConfig, grid: tuple[int, int], seed: int, sample: int, wanted: int, everything: Patches
) -> Patches:
    placed = []
    covered: Patches = set()
    for block in range(config.time_frequency_blocks):
        draw = draws(config, seed, sample, block)
        multiblock = MaskConfig(block_aspect=config.block_aspect)
        rows, columns = sides(multiblock, grid, config.time_frequency_scale, draw[0], draw[1], wanted)
        row, column = best_place(config, grid, covered, rows, columns, draw[2:])
        placed.append((row, rows, column, columns))
        covered |= rectangle(grid, row, rows, column, columns)
    masked: Patches = set()
    for arm in range(grid[1] + 2):  # the last step fills the grid
        larger = set(everything) if arm > grid[1] else set()
        for row, rows, column, columns in placed:
            up = arm * grid[0] // grid[1]
            larger |= block_with_arms(config, grid, row, rows, column, columns, up, 0)
            larger |= block_with_arms(config, grid, row, rows, column, columns, 0, arm)
        if len(larger) > wanted:
            return masked | first(grid, larger - masked, placed[0][0], placed[0][2], wanted - len(masked))
        masked = larger
    raise AssertionError("the last step covers the grid")


def draws(config: MaskConfig, seed: int, sample: int, block: int) -> list[float]:
    return counter_rng.uniform(seed, 2 + 256 * block, np.array([sample]), 2 + 2 * config.candidates)[0].tolist()


def sides(
    config: MaskConfig, grid: tuple[int, int], scales: tuple[float, float], scale_draw: float, aspect_draw: float,
    wanted: int,
) -> tuple[int, int]:  # fmt: skip
    scale = scales[0] + (scales[1] - scales[0]) * scale_draw
    aspect = config.block_aspect[0] + (config.block_aspect[1] - config.block_aspect[0]) * aspect_draw
    if config.strategy == "time":
        return grid[0], max(round(grid[1] * scale), 1)
    if config.strategy == "frequency":
        return max(round(grid[0] * scale), 1), grid[1]
    if config.strategy == "single_block":
        rows = round(grid[0] * math.sqrt(wanted / (grid[0] * grid[1]) / aspect))
        rows = min(max(rows, math.ceil(wanted / grid[1])), grid[0])
        return rows, math.ceil(wanted / rows)
    rows = min(max(round(grid[0] * math.sqrt(scale / aspect)), 1), grid[0])
    return rows, min(max(round(scale * grid[0] * grid[1] / rows), 1), grid[1])


def best_place(
    config: MaskConfig, grid: tuple[int, int], masked: Patches, rows: int, columns: int, draw: list[float]
) -> tuple[int, int]:
    """The first of the drawn places whose block has most patches outside `masked`."""
    best, gain = (0, 0), -1
    for k in range(config.candidates):
        places = grid if config.placement == "wrap" else (grid[0] - rows + 1, grid[1] - columns + 1)
        row, column = int(draw[k] * places[0]), int(draw[config.candidates + k] * places[1])
        new = len(rectangle(grid, row, rows, column, columns) - masked)
        if new > gain:
            best, gain = (row, column), new
    return best


def rectangle(grid: tuple[int, int], row: int, rows: int, column: int, columns: int) -> Patches:
    return {((row + i) % grid[0], (column + j) % grid[1]) for i in range(rows) for j in range(columns)}


def block_with_arms(
    config: MaskConfig, grid: tuple[int, int], row: int, rows: int, column: int, columns: int, up: int, aside: int
) -> Patches:
    patches = {(row + i, column + j) for i in range(-up, rows + up) for j in range(-aside, columns + aside)}
    if config.placement == "inside":
        return {(f, t) for f, t in patches if 0 <= f < grid[0] and 0 <= t < grid[1]}
    return {(f % grid[0], t % grid[1]) for f, t in patches}


def first(grid: tuple[int, int], patches: Patches, row: int, column: int, count: int) -> Patches:
    """The `count` first patches, column by column from `column` on, each from `row` on, around the edges."""
    order = sorted(patches, key=lambda p: ((p[1] - column) % grid[1], (p[0] - row) % grid[0]))
    return set(order[:count])
