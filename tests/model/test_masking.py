"""Masks: exact counts, disjoint and covering, uniform under the default placement, wider in time than in frequency."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ajepa.config import MaskConfig
from ajepa.model import masking
from ajepa.model.masking import block_sides, sample_masks, target_count

GRIDS = [(8, 64), (8, 8), (8, 16)]
RATIOS = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def as_grid(targets: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[B, F, T] true where a patch is a target."""
    masked = np.zeros((len(targets), grid[0] * grid[1]), bool)
    np.put_along_axis(masked, targets, True, axis=1)
    return masked.reshape(-1, *grid)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("placement", ["wrap", "inside"])
def test_context_and_targets_are_disjoint_cover_the_grid_and_have_the_exact_count(grid, ratio, placement):
    config = MaskConfig(mask_ratio=ratio, placement=placement)
    context, targets = sample_masks(config, grid, 0, np.arange(64))
    assert targets.shape[1] == target_count(config, grid) == round(ratio * grid[0] * grid[1])
    both = np.sort(np.concatenate([context, targets], axis=1), axis=1)
    assert (both == np.arange(grid[0] * grid[1])).all()
    assert (np.diff(context, axis=1) > 0).all() and (np.diff(targets, axis=1) > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 12), columns=st.integers(2, 40), ratio=st.floats(0.1, 0.95),
    blocks=st.integers(1, 8), candidates=st.integers(1, 8), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_any_settings_give_exact_partitions(rows, columns, ratio, blocks, candidates, seed):
    config = MaskConfig(mask_ratio=ratio, num_blocks=blocks, candidates=candidates)
    context, targets = sample_masks(config, (rows, columns), seed, np.arange(8))
    assert targets.shape[1] == round(ratio * rows * columns)
    assert all(len(set(c) | set(t)) == rows * columns for c, t in zip(context, targets, strict=True))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.5, 0.7])
def test_every_row_and_column_is_target_within_twice_of_uniform(grid, ratio):
    _, targets = sample_masks(MaskConfig(mask_ratio=ratio), grid, 3, np.arange(4000))
    share = as_grid(targets, grid).mean(axis=0)
    for line in (share.mean(axis=0), share.mean(axis=1)):
        assert line.max() < 2 * ratio and line.min() > ratio / 2  # as targets
        assert (1 - line).max() < 2 * (1 - ratio) and (1 - line).min() > (1 - ratio) / 2  # as context


def test_inside_placement_leaves_the_middle_to_the_targets():
    """Why wrap is the default: the literal reading never shows the middle of the 8 x 64 grid as context."""
    grid = (8, 64)
    inside = as_grid(sample_masks(MaskConfig(placement="inside", candidates=1), grid, 0, np.arange(2000))[1], grid)
    wrap = as_grid(sample_masks(MaskConfig(), grid, 0, np.arange(2000))[1], grid)
    assert inside.mean(axis=0)[3:5, 24:40].mean() > 0.9
    assert inside.mean(axis=0)[0, 0] < 0.4
    assert abs(wrap.mean(axis=0)[3:5, 24:40].mean() - 0.7) < 0.05


def test_blocks_are_wider_in_time_than_in_frequency_and_no_strips():
    draws = np.random.default_rng(0).random((2, 5000))
    rows, columns = block_sides(MaskConfig(), (8, 64), *draws)
    assert (columns > rows).all()
    assert rows.max() < 8 and rows.min() >= 2
    assert columns.min() >= 18 and columns.max() <= 36


def test_block_area_stays_in_the_scale_range():
    draws = np.random.default_rng(1).random((2, 5000))
    rows, columns = block_sides(MaskConfig(), (8, 64), *draws)
    share = rows * columns / 512
    assert share.min() > 0.14 and share.max() < 0.21


def test_clamped_sides_keep_the_area():
    config = MaskConfig(block_scale=(0.5, 0.5), block_aspect=(0.1, 0.1))  # asks for more rows than there are
    rows, columns = block_sides(config, (8, 64), np.zeros(1), np.zeros(1))
    assert (rows[0], columns[0]) == (8, 32)


def test_a_mask_depends_on_seed_and_sample_alone():
    config, grid = MaskConfig(), (8, 64)
    samples = np.arange(100, 132)
    context, targets = sample_masks(config, grid, 7, samples)
    for part in (slice(0, 5), slice(20, 32)):
        again = sample_masks(config, grid, 7, samples[part])
        assert (again[0] == context[part]).all() and (again[1] == targets[part]).all()
    assert (sample_masks(config, grid, 8, samples)[1] != targets).any(axis=1).all()


def test_masks_of_a_batch_differ():
    _, targets = sample_masks(MaskConfig(), (8, 64), 0, np.arange(500))
    assert len({row.tobytes() for row in targets}) == 500


def test_more_candidates_need_fewer_blocks(monkeypatch):
    drawn = []
    monkeypatch.setattr(masking, "block_sides", lambda *a: drawn.append(len(a[2])) or block_sides(*a))
    counts = []
    for candidates in (1, 8):
        drawn.clear()
        sample_masks(MaskConfig(candidates=candidates), (8, 64), 0, np.arange(500))
        counts.append(sum(drawn) / 500)
    assert counts[1] < 5.2 < counts[0]  # blocks for 70 % of the grid; four plain draws overlap to about half
