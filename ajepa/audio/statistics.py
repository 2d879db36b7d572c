"""Per-bin mean and standard deviation from per-row sums, exact and the same whatever the order of the rows."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

STD_FLOOR = 1e-3  # log units; a constant bin is centred but not blown up
UNIT_BITS = 40  # sums are counted in units of 2**-40; those of float16 values are whole numbers of them
LOW_BITS = 32  # of a sum in units, added apart from the high ones, so that neither half leaves int64


@dataclass(frozen=True)
class Statistics:
    """Normalisation of a dataset over its valid frames: mean and std, float64 [n_mels]."""

    mean: np.ndarray
    std: np.ndarray
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "frames": self.frames}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """What `to_dict` gave; KeyError where something is missing."""
        return cls(np.array(values["mean"]), np.array(values["std"]), values["frames"])


class RunningSums:
    """Running totals of rows. They are integers, so adding is exact and knows no order: not that of rows, nor of
    shards, nor of datasets that are merged."""

    def __init__(self, n_mels: int) -> None:
        self.frames = 0
        self._sum = np.zeros(n_mels, object)  # of Python's integers, in units of 2**-UNIT_BITS
        self._sumsq = np.zeros(n_mels, object)

    def add(self, num_frames: np.ndarray, bin_sum: np.ndarray, bin_sumsq: np.ndarray) -> None:
        """Add n rows: num_frames [n]; bin_sum, bin_sumsq [n, n_mels] float64 over the valid frames.

        Raises:
            ValueError: a sum is not finite.
        """
        self.frames += int(num_frames.sum(dtype=np.int64))
        self._sum += _units(bin_sum)
        self._sumsq += _units(bin_sumsq)

    def statistics(self) -> Statistics:
        """Mean and standard deviation, rounded once.

        Raises:
            ValueError: no frames at all.
        """
        n = self.frames
        if not n:
            raise ValueError("no valid frames to take statistics of")
        unit = 1 << UNIT_BITS
        mean = [float(Fraction(int(s), n * unit)) for s in self._sum]
        pairs = zip(self._sum, self._sumsq, strict=True)
        variance = [max(0.0, float(Fraction(int(q) * unit * n - int(s) ** 2, (n * unit) ** 2))) for s, q in pairs]
        return Statistics(np.array(mean), np.maximum(np.sqrt(variance), STD_FLOOR), n)


def _units(rows: np.ndarray) -> np.ndarray:
    """Column sums of [n, bins] float64, as Python integers in units."""
    if not np.isfinite(rows).all():
        raise ValueError("a sum is not finite")
    units = np.rint(rows * 2.0**UNIT_BITS)  # a power of two: exact, and whole numbers stay exact beyond 2**53
    high = np.floor(units / 2.0**LOW_BITS)
    low = units - high * 2.0**LOW_BITS
    totals = (part.astype(np.int64).sum(axis=0).astype(object) for part in (high, low))
    return next(totals) * (1 << LOW_BITS) + next(totals)
