"""Mean and std from per-row sums against two passes over the frames."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from helpers.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from ajepa.audio.statistics import STD_FLOOR, RunningSums


def rows_of(clips):
    """Frames, sums and sums of squares of clips [bins, frames]."""
    return (
        np.array([clip.shape[1] for clip in clips], np.int32),
        np.stack([clip.sum(axis=1) for clip in clips]),
        np.stack([np.square(clip).sum(axis=1) for clip in clips]),
    )


def pick(rows, order):
    return tuple(values[order] for values in rows)


def reduce_statistics(*parts):
    """The statistics of rows that are added part by part."""
    totals = RunningSums(parts[0][1].shape[1])
    for part in parts:
        totals.add(*part)
    return totals.statistics()


def random_clips(count, seed, mean=-5.0, std=3.0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 400, count)
    return [generator.normal(mean + generator.normal(), std, (8, n)) for n in lengths]


@examples(40)
@given(count=st.integers(1, 40), seed=st.integers(0, 10_000), std=st.floats(0.1, 10))
def test_equals_two_passes_over_all_frames(count, seed, std):
    clips = random_clips(count, seed, std=std)
    frames = np.concatenate(clips, axis=1)
    statistics = reduce_statistics(rows_of(clips))
    np.testing.assert_allclose(statistics.mean, frames.mean(axis=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics.std, np.maximum(frames.std(axis=1), STD_FLOOR), rtol=1e-6)
    assert statistics.frames == frames.shape[1]


ROWS = rows_of(random_clips(60, 0))


@examples(60)
@given(order=st.permutations(range(60)))
def test_the_order_of_the_rows_changes_no_bit(order):
    one, other = reduce_statistics(ROWS), reduce_statistics(pick(ROWS, list(order)))
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.std.tobytes() == other.std.tobytes()


@examples(40)
@given(cuts=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 1000))
def test_how_the_rows_were_split_into_shards_changes_no_bit(cuts, seed):
    edges = [0, *sorted(cuts), 60]
    shards = [pick(ROWS, np.arange(a, b)) for a, b in pairwise(edges)]
    np.random.default_rng(seed).shuffle(shards)
    one, other = reduce_statistics(ROWS), reduce_statistics(*shards)
    assert (one.mean.tobytes(), one.std.tobytes()) == (other.mean.tobytes(), other.std.tobytes())


def test_float16_rows_lose_nothing():
    """The mean is the true one, rounded once, even where float64 sums would have lost digits."""
    values = np.random.default_rng(0).normal(-5, 3, (8, 3_000)).astype(np.float16)
    values[:, ::7] *= np.float16(1e-4)
    whole = [sum(Fraction(float(v)) for v in row) / 3_000 for row in values]
    parts = [rows_of([part.astype(np.float64)]) for part in np.split(values, 30, axis=1)]
    assert reduce_statistics(*parts).mean.tolist() == [float(w) for w in whole]


def test_long_clips_weigh_more():
    clips = [np.full((1, 300), 2.0), np.full((1, 100), 6.0)]
    assert reduce_statistics(rows_of(clips)).mean == 3.0


@pytest.mark.parametrize("value", [0.0, -13.8125, 1e4])
def test_a_constant_bin_has_the_floor_as_std(value):
    statistics = reduce_statistics(rows_of([np.full((4, 100), value), np.full((4, 33), value)]))
    np.testing.assert_array_equal(statistics.std, STD_FLOOR)


def test_a_small_variance_about_a_big_mean_keeps_its_digits():
    clips = random_clips(50, 1, mean=1e4, std=0.01)
    wanted = np.concatenate(clips, axis=1).std(axis=1)
    np.testing.assert_allclose(reduce_statistics(rows_of(clips)).std, wanted, rtol=1e-6)


def test_a_small_variance_within_rows_survives_a_big_mean():
    generator = np.random.default_rng(0)
    clips = [generator.normal(1_000, 0.05, (8, 500)) for _ in range(50)]
    wanted = np.concatenate(clips, axis=1).std(axis=1)
    np.testing.assert_allclose(reduce_statistics(rows_of(clips)).std, wanted, rtol=1e-4)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="no valid frames"):
        RunningSums(8).statistics()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sums_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        RunningSums(1).add(np.array([1]), np.array([[0.0]]), np.array([[value]]))
