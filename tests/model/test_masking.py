"""Masks of every strategy: exact counts, disjoint and covering, pure functions of seed, sample and progress."""

from typing import get_args

import numpy as np
import pytest
from helpers.mask_grids import as_grid, masks
from helpers.properties import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from ajepa.config import MaskConfig, MaskStrategy
from ajepa.errors import UserError
from ajepa.model import masking
from ajepa.model.masking import block_sides, curriculum_probability, sample_masks, target_count

GRIDS = [(8, 64), (8, 8), (8, 16)]
STRATEGIES = get_args(MaskStrategy)


@pytest.mark.parametrize("grid", [*GRIDS, (8, 192), (5, 7)])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("placement", ["wrap", "inside"])
def test_context_and_targets_are_disjoint_cover_the_grid_and_have_the_exact_count(grid, strategy, placement):
    for ratio in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        config = MaskConfig(strategy=strategy, mask_ratio=ratio, placement=placement)
        context, targets = sample_masks(config, grid, 0, np.arange(64), np.linspace(0, 1, 64))
        assert targets.shape[1] == target_count(config, grid) == round(ratio * (grid[0] * grid[1]))
        both = np.sort(np.concatenate([context, targets], axis=1), axis=1)
        assert (both == np.arange(grid[0] * grid[1])).all()
        assert (np.diff(context, axis=1) > 0).all() and (np.diff(targets, axis=1) > 0).all()
        assert context.dtype == targets.dtype == np.int64


@examples(60)
@given(
    strategy=st.sampled_from(STRATEGIES), rows=st.integers(2, 12), columns=st.integers(2, 40),
    ratio=st.floats(0.1, 0.95), candidates=st.integers(1, 8), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_any_settings_give_exact_partitions(strategy, rows, columns, ratio, candidates, seed):
    config = MaskConfig(strategy=strategy, mask_ratio=ratio, candidates=candidates)
    assume(0 < target_count(config, (rows, columns)) < rows * columns)
    context, targets = sample_masks(config, (rows, columns), seed, np.arange(8), np.full(8, 0.3))
    assert targets.shape[1] == round(ratio * (rows * columns))
    assert all(len(set(c) | set(t)) == rows * columns for c, t in zip(context, targets, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_depends_on_seed_sample_and_progress_alone(strategy):
    config, grid = MaskConfig(strategy=strategy), (8, 64)
    samples, progress = np.arange(100, 132), np.linspace(0, 1, 32)
    context, targets = sample_masks(config, grid, 7, samples, progress)
    for part in (slice(0, 5), slice(20, 32), slice(9, 10), slice(3, 3)):
        again = sample_masks(config, grid, 7, samples[part], progress[part])
        assert (again[0] == context[part]).all() and (again[1] == targets[part]).all()
    assert (sample_masks(config, grid, 8, samples, progress)[1] != targets).any(axis=1).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_masks_of_a_batch_differ(strategy):
    targets = masks(MaskConfig(strategy=strategy), (8, 64), 500)
    # A single block has a few shapes and 512 places.
    assert len({row.tobytes() for row in targets}) > (350 if strategy == "single_block" else 480)


@pytest.mark.parametrize("grid", [(8, 64), (8, 8)])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_with_wrap_every_patch_is_equally_likely_a_target(strategy, grid, ratio):
    count = 6000
    config = MaskConfig(strategy=strategy, mask_ratio=ratio)
    share = as_grid(masks(config, grid, count), grid).mean(axis=0)
    ratio = target_count(config, grid) / share.size
    error = np.sqrt(ratio * (1 - ratio) / count)  # of a binomial share
    assert abs(share - ratio).max() < 5 * error  # p < 1e-3 over 512 patches


@pytest.mark.parametrize("strategy", ["multiblock", "single_block"])
def test_inside_placement_leaves_the_middle_to_the_targets(strategy):
    """Why wrap is the default: the literal reading hardly ever shows the middle of the 8 x 64 grid as context."""
    grid = (8, 64)
    for candidates, at_least in ((1, 0.9), (8, 0.87)):
        config = MaskConfig(strategy=strategy, placement="inside", candidates=candidates)
        share = as_grid(masks(config, grid, 2000), grid).mean(axis=0)
        assert share[3:5, 24:40].mean() > at_least
        assert share[0, 0] < 0.65


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


def blocks_a_mask(monkeypatch, config):
    drawn = []
    monkeypatch.setattr(masking, "block_sides", lambda *a: drawn.append(len(a[2])) or block_sides(*a))
    sample_masks(config, (8, 64), 0, np.arange(500))
    return sum(drawn) / 500


def test_the_best_of_eight_places_needs_fewer_blocks_for_the_ratio(monkeypatch):
    plain, best = (blocks_a_mask(monkeypatch, MaskConfig(candidates=candidates)) for candidates in (1, 8))
    assert 4.5 < best < 5.2 < plain  # four plain draws overlap to about half of the grid


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"strategy": "blocks"}, "strategy is one of multiblock, .*, curriculum, not 'blocks'"),
        ({"time_frequency_blocks": 0}, "time_frequency_blocks must be positive, got 0"),
        ({"time_frequency_scale": (0.1, 0.05)}, r"block scale \(0.1, 0.05\)"),
        ({"block_scale": (0.0, 0.2)}, r"block scale \(0.0, 0.2\)"),
    ],
)
def test_mistakes_are_named(changes, match):
    with pytest.raises(UserError, match=match):
        MaskConfig(**changes)


@pytest.mark.parametrize("progress", [None, np.full(8, 1.5), np.full(8, -0.1), np.full(8, np.nan), np.zeros(7)])
def test_a_curriculum_wants_its_progress(progress):
    with pytest.raises(ValueError, match="progress"):
        sample_masks(MaskConfig(strategy="curriculum"), (8, 8), 0, np.arange(8), progress)


def test_the_curriculum_rises_as_in_the_paper():
    progress = np.array([0, 0.25, 0.5, 1])
    assert np.allclose(curriculum_probability(progress), [0.01, 0.50007, 0.70714, 1], atol=1e-5)
    assert (np.diff(curriculum_probability(np.linspace(0, 1, 99))) > 0).all()
