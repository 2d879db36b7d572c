"""Masks as pictures of ones and zeros, for the tests of masks."""

import numpy as np

from ajepa.config import MaskConfig
from ajepa.model.masking import sample_masks


def masks(config: MaskConfig, grid: tuple[int, int], count: int) -> np.ndarray:
    """Targets of samples 0 to count - 1, [count, M], over all of training."""
    return sample_masks(config, grid, 3, np.arange(count), np.linspace(0, 1, count))[1]


def as_grid(targets: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[B, F, T] true where a patch is a target."""
    masked = np.zeros((len(targets), grid[0] * grid[1]), bool)
    np.put_along_axis(masked, targets, True, axis=1)
    return masked.reshape(-1, *grid)
