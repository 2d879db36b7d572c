"""Counter-based uniform numbers: a pure function of the keys, so a draw never depends on what was drawn before,
on the batch a sample sits in, or on the number of workers."""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), elementwise on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, stream: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [len(samples), count].

    Args:
        seed: the run's seed.
        stream: what the numbers are for; different streams are independent.
        samples: int64 ids, one row of numbers each.
        count: numbers for each sample.
    """
    with np.errstate(over="ignore"):  # uint64 arithmetic wraps on purpose
        key = _mix(_mix(np.asarray([seed], np.uint64) + _GAMMA) + np.uint64(stream) * _GAMMA)
        rows = _mix(key + (samples.astype(np.uint64) + np.uint64(1)) * _GAMMA)[:, None]
        bits = _mix(rows + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
