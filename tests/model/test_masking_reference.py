"""The batched masks equal those of plain loops."""

import numpy as np
import pytest
from helpers.masking_reference import first, reference_mask
from helpers.properties import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from ajepa.config import MaskConfig
from ajepa.model.masking import _trimmed, sample_masks

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


@given(grid=st.tuples(st.integers(1, 20), st.integers(1, 90)), data=st.data())
def test_a_block_is_trimmed_to_its_first_patches_column_by_column(grid, data):
    row, column = (data.draw(st.integers(0, side - 1)) for side in grid)
    block = np.random.default_rng(data.draw(st.integers(0, 99))).random((1, *grid)) < 0.5
    count = data.draw(st.integers(0, int(block.sum())))
    kept = _trimmed(block, *np.array([[row], [column], [count]]))
    patches = set(zip(*np.nonzero(block[0]), strict=True))
    assert set(zip(*np.nonzero(kept[0]), strict=True)) == first(grid, patches, row, column, count)
