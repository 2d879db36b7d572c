"""The order of an epoch: a permutation, well mixed, read about once by all ranks together; and held-out clips."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.reader_data import CLIPS, reader, same, write_shards
from hypothesis import given
from hypothesis import strategies as st

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.order import epoch_order, heldout_rows, owen_scrambled

SHARDS = (500,) * 24  # as preprocess writes them: 7 row groups of 64 and one of 52
ROWS = sum(SHARDS)
LABELS = np.arange(ROWS) // 600  # sorted by label: a row group has one or two
GROUPS = np.arange(ROWS) // 500 * 8 + np.arange(ROWS) % 500 // 64


def test_the_example_in_the_docstring():
    order = epoch_order(0, 0, np.arange(6), np.array([0, 0, 0, 1, 1, 1]), 2)
    assert order.rows.tolist() == [3, 0, 2, 5, 1, 4] and order.columns.tolist() == [0, 1, 1, 0, 1, 0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("order")))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """192 row groups of very small clips."""
    return write_shards(str(tmp_path_factory.mktemp("many")), SHARDS, FrontEndConfig(n_mels=16, clip_frames=16))


def mixed(epoch: int = 0) -> np.ndarray:
    return epoch_order(0, epoch, np.arange(ROWS), GROUPS, 64).rows


@given(
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=30),
    window=st.integers(1, 80),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 1000),
)
def test_any_row_groups_give_a_permutation_dealt_in_rounds(sizes, window, seed, epoch):
    """Of any `window` places from a round's first on, no two are of one column."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = 3 * np.arange(len(groups))
    order = epoch_order(seed, epoch, rows, groups, window)
    np.testing.assert_array_equal(np.sort(order.rows), rows)
    window = min(window, len(rows))
    for start in range(0, len(rows), window):
        columns = order.columns[start : start + window]
        assert len(set(columns)) == len(columns) and columns.max() < window


def test_the_order_is_what_it_was():
    """Saved cursors depend on it: it may only change together with the format of the reader's state."""
    rows = epoch_order(7, 3, np.arange(40), np.arange(40) // 8, 3).rows
    assert rows[:12].tolist() == [23, 35, 2, 16, 7, 32, 17, 4, 34, 1, 27, 19]


@given(k=st.integers(0, 7), rounds=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_every_stretch_of_a_round_is_spread_over_the_columns(k, rounds, seed):
    numbers = owen_scrambled(np.random.default_rng(seed).random((rounds, 1 << k)))
    for j in range(k + 1):
        parts = np.sort((numbers >> (k - j)).reshape(rounds, -1, 1 << j), axis=-1)
        np.testing.assert_array_equal(parts, np.broadcast_to(np.arange(1 << j), parts.shape))


def test_every_column_may_come_at_every_place_of_a_round():
    numbers = owen_scrambled(np.random.default_rng(0).random((4000, 8)))
    counts = np.stack([np.bincount(place, minlength=8) for place in numbers.T])
    assert counts.min() > 400 and counts.max() < 600


def mean_run(labels: np.ndarray) -> float:
    return len(labels) / (1 + np.count_nonzero(np.diff(labels)))


def test_sorted_labels_come_in_runs_no_longer_than_in_a_random_permutation():
    random = LABELS[np.random.default_rng(0).permutation(ROWS)]
    assert mean_run(LABELS[mixed()]) == pytest.approx(mean_run(random), rel=0.02)


def test_every_batch_draws_from_many_row_groups():
    groups = GROUPS[mixed()]
    assert min(len(set(groups[i : i + 256])) for i in range(0, ROWS - 256, 256)) > 50


def test_every_batch_draws_from_many_labels():
    """20 labels; 256 clips drawn at random would miss one in a few hundred thousand batches."""
    labels = LABELS[mixed()]
    assert min(len(set(labels[i : i + 256])) for i in range(0, ROWS - 256, 256)) >= 17


def test_the_labels_of_batches_spread_as_they_do_from_64_random_row_groups():
    """Most clips of one label in a batch: far from a batch of one label, whatever the order on disk."""
    labels = LABELS[mixed()]
    assert max(max(Counter(labels[i : i + 256]).values()) for i in range(0, ROWS - 256, 256)) < 256 / 4


@pytest.mark.parametrize("distance", [1, 2, 64, 128])
def test_rows_at_a_distance_in_the_order_are_uncorrelated(distance):
    order = mixed()
    assert abs(np.corrcoef(order[:-distance], order[distance:])[0, 1]) < 0.15


def test_epochs_are_uncorrelated():
    places = [np.argsort(mixed(epoch)) for epoch in (0, 1)]
    assert abs(np.corrcoef(*places)[0, 1]) < 0.1


@given(
    batch_size=st.integers(1, 600),
    world_size=st.integers(1, 9),
    step=st.integers(0, 99),
    window=st.integers(1, 70),
    holdout=st.integers(0, CLIPS // 2),
)
def test_any_number_of_ranks_shares_the_same_clips(dataset, batch_size, world_size, step, window, holdout):
    batch_size = max(batch_size, world_size)
    options = {"batch_size": batch_size, "window": window, "holdout": holdout}
    shares = [reader(dataset, rank=r, world_size=world_size, **options)._share(step) for r in range(world_size)]
    rows, samples = (np.concatenate(part) for part in zip(*shares, strict=True))
    whole = reader(dataset, **options)
    np.testing.assert_array_equal((rows, samples), whole._share(step))
    np.testing.assert_array_equal(np.sort(samples), np.arange(step * batch_size, (step + 1) * batch_size))
    wanted = [whole.epoch_order(int(k) // whole.num_clips)[int(k) % whole.num_clips] for k in samples]
    np.testing.assert_array_equal(rows, wanted)


def rows_read(dataset, world_size: int, **changes) -> int:
    """Rows of the row groups that all ranks read in the first epoch, nothing cached."""
    total = 0
    for rank in range(world_size):
        options = {"batch_size": 256, "window": 64, "cache_bytes": 0, "verify": False, "crop_frames": 16}
        source = reader(dataset, rank=rank, world_size=world_size, **(options | changes))
        read, counts = source._source.read, []
        source._groups._make = lambda group, read=read, counts=counts: counts.append(group) or read(group)
        for step in range(ROWS // source.batch_size):
            source.batch(step)
        total += source._source.sizes[counts].sum()
    return total


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 256), (8, 256), (8, 1024), (8, 96), (8, 32)])
def test_all_ranks_together_read_an_epoch_little_more_than_once(many, world_size, batch_size):
    """The columns' first row groups are read once more at the epoch's end: 64 of 192 here, 64 of 32,000 of AudioSet."""
    assert rows_read(many, world_size, batch_size=batch_size) / ROWS < 1 + 64 / 192 + 0.08


@pytest.mark.parametrize(("world_size", "batch_size"), [(3, 256), (7, 256), (8, 250)])
def test_uneven_ranks_read_the_row_groups_between_them_twice(many, world_size, batch_size):
    assert rows_read(many, world_size, batch_size=batch_size) / ROWS < 1 + 64 / 192 + 0.4


def test_a_rank_holds_its_share_of_the_window(many):
    source = reader(many, batch_size=256, window=64, cache_bytes=0, crop_frames=16, rank=3, world_size=8)
    held = []
    for step in range(40):
        source.batch(step)
        held.append(len(source._groups))
    assert max(held) <= 64 / 8 * 1.5


def test_the_row_groups_of_the_next_epoch_are_asked_for_little_by_little(many):
    """A window of 16 steps before its first batch the first of them, and all of them one step before."""
    source = reader(many, batch_size=256, window=64, cache_bytes=0, crop_frames=16)
    begins = ROWS // 256
    new = set(source._groups_of(range(begins, begins + 1)))
    asked = {}
    with ThreadPoolExecutor(1) as pool:
        for step in range(begins - 20, begins):
            source._batch(step, begins + 20, pool)
            asked[begins - step] = len(new & set(source._used)) / len(new)
    assert asked[16] < asked[12] < asked[8] < asked[1] == 1


def test_held_out_clips_never_come(dataset):
    source = reader(dataset, holdout=50)
    rows = np.concatenate([source.batch(step).rows for step in range(3 * CLIPS // 24)])
    assert source.num_clips == CLIPS - 50
    assert not np.isin(source.heldout_rows, rows).any() and len(np.unique(rows)) == CLIPS - 50


def test_an_epoch_without_the_held_out_clips_is_whole(dataset):
    source = reader(dataset, holdout=50)
    wanted = np.setdiff1d(np.arange(CLIPS), source.heldout_rows)
    np.testing.assert_array_equal(np.sort(source.epoch_order(2)), wanted)


def test_held_out_clips_are_those_of_the_seed_and_the_number_of_clips(dataset):
    chosen = reader(dataset, holdout=9, batch_size=60, window=7, rank=1, world_size=2).heldout_rows
    np.testing.assert_array_equal(chosen, heldout_rows(0, CLIPS, 9))
    assert len(set(chosen)) == 9 and set(chosen) != set(heldout_rows(1, CLIPS, 9))


@pytest.mark.parametrize("holdout", [CLIPS // 2 + 1, CLIPS, -1])
def test_holding_out_more_than_half_is_a_users_mistake(dataset, holdout):
    with pytest.raises(UserError, match=f"holdout {holdout}: from 0 to half of the {CLIPS} clips"):
        reader(dataset, holdout=holdout)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_fixed_crops_are_the_same_everywhere(dataset, cache_bytes):
    rows = reader(dataset, holdout=20).heldout_rows
    other = reader(dataset, batch_size=50, rank=1, world_size=3, threads=1, cache_bytes=cache_bytes)
    list(other.batches(0, 5))
    same(other.crops_of(rows, 3), reader(dataset).crops_of(rows, 3))


def test_fixed_crops_of_some_clips_are_those_of_all(dataset):
    source = reader(dataset)
    np.testing.assert_array_equal(
        source.crops_of(np.array([30, 5]), 2).log_mel, source.crops_of(np.arange(40), 2).log_mel[[60, 61, 10, 11]]
    )


def test_one_clip_gives_different_crops_with_samples_of_their_own(dataset):
    long = 4  # 45 frames
    batch = reader(dataset).crops_of(np.array([long]), 8)
    assert len(set(batch.log_mel[:, 1, 0])) > 3 and len(set(batch.samples)) == 8
    assert (batch.rows == long).all() and (batch.log_mel[:, 0] == long).all()
