"""Counter-based uniform numbers."""

import numpy as np

from ajepa.counter_rng import uniform


def test_rows_do_not_depend_on_their_neighbours():
    all_rows = uniform(3, 1, np.arange(100), 20)
    assert (uniform(3, 1, np.array([7, 50]), 5) == all_rows[[7, 50], :5]).all()


def test_seeds_streams_and_samples_are_independent():
    base = uniform(0, 1, np.arange(2000), 4)
    for other in (
        uniform(1, 1, np.arange(2000), 4),
        uniform(0, 2, np.arange(2000), 4),
        uniform(0, 1, np.arange(2000, 4000), 4),
    ):
        correlation = np.corrcoef(base.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 0.04
    assert len(np.unique(base)) == base.size


def test_numbers_are_uniform():
    values = uniform(5, 9, np.arange(20_000), 5).ravel()
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    expected = len(values) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square of 19 degrees, p = 1e-4
    assert values.min() >= 0 and values.max() < 1


def test_large_seeds_and_samples_are_taken():
    assert uniform(2**63 - 1, 1, np.array([2**62]), 2).shape == (1, 2)
