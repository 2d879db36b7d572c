"""Masks a second on one core, for every strategy, beside the plain loops that they equal."""

from typing import get_args

import numpy as np
import pytest
from benchmarks.common import ROUNDS, paired, say, seconds
from helpers.masking_reference import reference_mask

from ajepa.config import MaskConfig, MaskStrategy
from ajepa.model.masking import sample_masks


@pytest.mark.parametrize("grid", [(8, 64), (8, 8)])
@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize("strategy", get_args(MaskStrategy))
def test_masks_a_second(strategy, batch, grid):
    config = MaskConfig(strategy=strategy)
    samples, progress = np.arange(batch), np.full(batch, 0.25)  # half of a curriculum's masks are aware there
    seconds(lambda: sample_masks(config, grid, 0, samples, progress), 3)
    rates = [batch / seconds(lambda: sample_masks(config, grid, 0, samples, progress), 20) for _ in range(ROUNDS)]
    say(f"{strategy}, {grid[0]} x {grid[1]}, batch {batch}: masks a second", rates)
    assert min(rates) > 0


@pytest.mark.parametrize("strategy", ["multiblock", "time_frequency"])
def test_masks_against_plain_loops(strategy):
    config, grid, samples = MaskConfig(strategy=strategy), (8, 64), np.arange(256)
    own, ratios = paired(
        lambda: sample_masks(config, grid, 0, samples),
        lambda: [reference_mask(config, grid, 0, int(sample)) for sample in samples[:32]],
    )
    say(f"{strategy}: speed over plain loops", [8 * ratio for ratio in ratios], f"{own / 256 * 1e6:.1f} us a mask")
    assert min(ratios) > 0
