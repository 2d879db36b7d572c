"""The batched masks equal those of plain loops, and sets of bits equal sets of patches."""

import numpy as np
import pytest
from helpers.masking_reference import first, rectangle, reference_mask
from helpers.properties import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from ajepa.config import MaskConfig
from ajepa.model import patchsets
from ajepa.model.masking import sample_masks

PLACED = ["multiblock", "single_block", "time", "frequency", "time_frequency"]


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda ends: (min(ends), max(ends)))


@pytest.mark.parametrize("strategy", PLACED)
@examples(200)
@given(
    grid=st.tuples(st.integers(1, 12), st.integers(2, 80)), ratio=st.floats(0.05, 0.95), scale=ranges(0.02, 0.9),
    aspect=ranges(0.1, 8), placement=st.sampled_from(["wrap", "inside"]), candidates=st.integers(1, 8),
    tf_blocks=st.integers(1, 4), tf_scale=ranges(0.01, 0.4), seed=st.integers(0, 2**63 - 1),
    sample=st.integers(0, 2**40),
)  # fmt: skip
def test_a_batch_of_masks_equals_the_loops(
    strategy, grid, ratio, scale, aspect, placement, candidates, tf_blocks, tf_scale, seed, sample
):
    assume(0 < round(ratio * (grid[0] * grid[1])) < grid[0] * grid[1])  # as Config demands
    config = MaskConfig(
        strategy=strategy, mask_ratio=ratio, block_scale=scale, block_aspect=aspect, placement=placement,
        candidates=candidates, time_frequency_blocks=tf_blocks, time_frequency_scale=tf_scale,
    )  # fmt: skip
    samples = np.arange(sample, sample + 3)
    _, targets = sample_masks(config, grid, seed, samples)
    assert targets.tolist() == [reference_mask(config, grid, seed, int(s)) for s in samples]


def test_a_count_between_two_numbers_is_rounded_as_the_config_rounds_it():
    """0.05 x 210 is 10.5; 0.05 x 3 x 70 is a little more in float64."""
    targets = sample_masks(MaskConfig(mask_ratio=0.05), (3, 70), 0, np.arange(2))[1]
    assert targets.shape == (2, round(0.05 * 210)) == (2, 10)


def test_settings_that_do_not_reach_the_ratio_are_filled_up_as_in_the_loops():
    """One-patch blocks without a choice of places: 1023 of them cover about 86 % of 512 patches."""
    config, grid = MaskConfig(mask_ratio=0.95, block_scale=(1e-4, 1e-4), candidates=1), (8, 64)
    _, targets = sample_masks(config, grid, 0, np.arange(2))
    assert targets.tolist() == [reference_mask(config, grid, 0, s) for s in range(2)]


def as_sets(grid: tuple[int, int], sets: np.ndarray) -> list[set[tuple[int, int]]]:
    return [set(zip(*np.nonzero(one.reshape(grid)), strict=True)) for one in patchsets.to_bool(grid, sets)]


@given(grid=st.tuples(st.integers(1, 20), st.integers(1, 150)), data=st.data())
def test_rectangles_of_bits_go_around_both_edges(grid, data):
    rows, columns = (data.draw(st.integers(0, side)) for side in grid)
    row, column = (data.draw(st.integers(0, side - 1)) for side in grid)
    sets = patchsets.rectangles(grid, *np.array([[row], [rows], [column], [columns]]))
    assert as_sets(grid, sets) == [rectangle(grid, row, rows, column, columns)]
    assert patchsets.sizes(sets) == rows * columns


@given(grid=st.tuples(st.integers(1, 10), st.integers(1, 80)), seed=st.integers(0, 99), data=st.data())
def test_the_first_patches_follow_columns_then_rows_from_any_start(grid, seed, data):
    row, column = (data.draw(st.integers(0, side - 1)) for side in grid)
    halves = patchsets.rectangles(grid, *np.random.default_rng(seed).integers(0, np.array(grid).repeat(2))[:, None])
    count = data.draw(st.integers(0, int(patchsets.sizes(halves)[0])))
    kept = patchsets.first_patches(grid, halves, *np.array([[row], [column], [count]]))
    assert as_sets(grid, kept) == [first(grid, as_sets(grid, halves)[0], row, column, count)]


@given(limit=st.integers(0, 300), answers=st.lists(st.integers(0, 300), min_size=1, max_size=9))
def test_bisection_finds_the_largest_that_fits(limit, answers):
    highest = np.array(answers)
    assert (patchsets.largest(lambda n: n <= highest, limit, len(highest)) == np.minimum(highest, limit)).all()
