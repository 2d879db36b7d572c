"""Per-bin mean and standard deviation from per-row sums: exact and the same whatever the order of the rows."""

from dataclasses import dataclass

import numpy as np

STD_FLOOR = 1e-3  # log units; a constant bin is centred but not blown up


@dataclass(frozen=True)
class Statistics:
    """Normalisation of a dataset over its valid frames: mean and std, float64 [n_mels]."""

    mean: np.ndarray
    std: np.ndarray
    frames: int


def reduce_statistics(
    clip_ids: list[str], num_frames: np.ndarray, bin_sum: np.ndarray, bin_sumsq: np.ndarray
) -> Statistics:
    """Combine rows' sums.

    Rows are summed in order of clip id, so the result is bit-identical for any number of workers. The
    variance is taken about the mean of each row first (parallel variance), which keeps float64's digits.

    Args:
        clip_ids: n ids; num_frames: [n]; bin_sum, bin_sumsq: [n, n_mels] over valid frames.

    Raises:
        ValueError: no frames at all.
    """
    order = np.argsort(np.array(clip_ids, dtype=object), kind="stable")
    frames = num_frames[order].astype(np.float64)[:, None]
    total = frames.sum()
    if not total:
        raise ValueError("no valid frames to take statistics of")
    sums, squares = bin_sum[order], bin_sumsq[order]
    mean = sums.sum(axis=0) / total
    row_mean = sums / np.maximum(frames, 1)
    within = np.maximum(squares - sums * row_mean, 0.0)
    between = frames * np.square(row_mean - mean)
    variance = (within + between).sum(axis=0) / total
    return Statistics(mean, np.maximum(np.sqrt(variance), STD_FLOOR), int(total))
