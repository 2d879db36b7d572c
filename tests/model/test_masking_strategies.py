"""What tells one masking strategy from another: strips, single blocks, crosses, no structure, and their mixture."""

import numpy as np
import pytest
from helpers.mask_grids import as_grid, masks

from ajepa.config import MaskConfig
from ajepa.model.masking import curriculum_probability, sample_masks

GRID = (8, 64)


def runs(line: np.ndarray) -> np.ndarray:
    """Runs of true along the last axis, which goes around."""
    return (line & ~np.roll(line, 1, axis=-1)).sum(axis=-1)


@pytest.mark.parametrize("placement", ["wrap", "inside"])
def test_time_strips_cover_whole_columns_but_for_the_trimmed_one(placement):
    masked = as_grid(masks(MaskConfig(strategy="time", placement=placement), GRID, 500), GRID)
    filled = masked.sum(axis=1)  # [B, T] rows of each column
    whole, divided = (filled == 8).sum(axis=1), ((filled > 0) & (filled < 8)).sum(axis=1)
    assert (whole == 358 // 8).all() and (divided == 1).all()


@pytest.mark.parametrize("placement", ["wrap", "inside"])
def test_frequency_strips_cover_whole_rows_but_for_the_trimmed_strip(placement):
    masked = as_grid(masks(MaskConfig(strategy="frequency", placement=placement), GRID, 500), GRID)
    filled = masked.sum(axis=2)  # [B, F] columns of each row
    divided = ((filled > 0) & (filled < 64)).sum(axis=1)
    assert (divided >= 1).all() and divided.max() <= 2  # a strip is one or two rows high
    assert (filled == 64).sum(axis=1).min() >= 4


def test_time_strips_are_as_wide_as_the_scale_says():
    masked = as_grid(masks(MaskConfig(strategy="time", mask_ratio=0.15, block_scale=(0.2, 0.2)), GRID, 200), GRID)
    assert (runs(masked.any(axis=1)) == 1).all()
    assert (masked.any(axis=1).sum(axis=1) == 10).all()  # of the 13 columns that trimming leaves
    two = as_grid(masks(MaskConfig(strategy="time", mask_ratio=0.4, block_scale=(0.2, 0.2)), GRID, 200), GRID)
    assert (runs(two.any(axis=1)) <= 3).all()


def test_a_single_block_is_a_rectangle_but_for_its_last_column():
    masked = as_grid(masks(MaskConfig(strategy="single_block"), GRID, 500), GRID)
    height, width = masked.any(axis=2).sum(axis=1), masked.any(axis=1).sum(axis=1)
    assert (runs(masked.any(axis=2)) <= 1).all() and (runs(masked.any(axis=1)) <= 1).all()
    assert (height * (width - 1) < 358).all() and (height * width >= 358).all()


def test_a_single_block_inside_the_grid_touches_no_two_edges_of_time():
    masked = as_grid(masks(MaskConfig(strategy="single_block", placement="inside", mask_ratio=0.3), GRID, 500), GRID)
    columns = masked.any(axis=1)
    assert not (columns[:, 0] & columns[:, -1]).any()


def test_random_masks_have_no_structure():
    """Neighbours in time are targets together as often as any two patches, and far more often in every other mask."""
    together = {}
    for strategy in ("random", "multiblock", "single_block", "time", "frequency", "time_frequency"):
        masked = as_grid(masks(MaskConfig(strategy=strategy), GRID, 2000), GRID)
        together[strategy] = (masked[:, :, 1:] & masked[:, :, :-1]).mean()
    assert abs(together.pop("random") - 358 / 512 * 357 / 511) < 0.001
    assert min(together.values()) > 0.6


def test_blocks_of_time_frequency_masks_grow_along_their_rows_and_columns_alone():
    """One block, few targets: every target shares its row or its column range with the block, arms on both sides."""
    config = MaskConfig(
        strategy="time_frequency", mask_ratio=0.3, time_frequency_blocks=1, time_frequency_scale=(0.05, 0.05),
        block_aspect=(1.0, 1.0),
    )  # fmt: skip
    masked = as_grid(masks(config, GRID, 300), GRID)  # from 2 x 13 patches to 154: 104 in the columns, 128 in the rows
    for mask in masked:
        rows, columns = mask.sum(axis=1), mask.sum(axis=0)
        in_block_columns = columns > 2
        assert (rows[np.argsort(rows)[-2:]] > 40).all()  # the two rows of the block
        assert in_block_columns.sum() <= 13 and runs(in_block_columns) == 1


def test_where_a_time_frequency_mask_is_large_enough_no_context_shares_time_or_frequency_with_its_block():
    config = MaskConfig(
        strategy="time_frequency", mask_ratio=0.5, time_frequency_blocks=1, time_frequency_scale=(0.05, 0.05),
        block_aspect=(1.0, 1.0),
    )  # fmt: skip
    masked = as_grid(masks(config, GRID, 300), GRID)  # the rows and columns of 2 x 13 patches are 206 of 256 targets
    assert (masked.all(axis=2).sum(axis=1) >= 2).all() and (masked.all(axis=1).sum(axis=1) >= 13).all()


def test_a_curriculum_mask_is_one_of_the_two_it_draws_from_as_often_as_the_paper_says():
    samples = np.arange(4000)
    blocks, aware = (masks(MaskConfig(strategy=s), GRID, 4000) for s in ("multiblock", "time_frequency"))
    for progress in (0.0, 0.1, 0.5, 1.0):
        config = MaskConfig(strategy="curriculum")
        mixed = sample_masks(config, GRID, 3, samples, np.full(4000, progress))[1]
        is_aware = (mixed == aware).all(axis=1)
        assert (is_aware | (mixed == blocks).all(axis=1)).all()
        assert abs(is_aware.mean() - curriculum_probability(progress)) < 0.03


def test_a_sample_stays_time_frequency_aware_once_it_is():
    config, samples = MaskConfig(strategy="curriculum"), np.arange(500)
    aware = masks(MaskConfig(strategy="time_frequency"), GRID, 500)
    shares = [sample_masks(config, GRID, 3, samples, np.full(500, p))[1] == aware for p in np.linspace(0, 1, 6)]
    assert (np.diff([share.all(axis=1) for share in shares], axis=0) >= 0).all()
