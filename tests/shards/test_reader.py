"""The training reader: a stream that depends on the seed and the position, and on nothing else."""

import threading

import numpy as np
import pytest
import torch
from helpers.reader_data import CLIPS, CROP, VALID, by_sample, joined, reader, same, write_shards

from ajepa.errors import UserError
from ajepa.shards.reader import ShardReader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("reader")))


@pytest.mark.parametrize("window", [1, 2, 64])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_holds_every_clip_once(dataset, window, epoch):
    np.testing.assert_array_equal(np.sort(reader(dataset, window=window).epoch_order(epoch)), np.arange(CLIPS))


@pytest.mark.parametrize("batch_size", [1, 24, CLIPS, 2 * CLIPS + 5])
def test_batches_go_through_epoch_after_epoch(dataset, batch_size):
    source = reader(dataset, batch_size=batch_size)
    steps = -(-3 * CLIPS // batch_size)
    rows = by_sample(*(source.batch(step) for step in range(steps))).rows
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(rows[epoch * CLIPS : (epoch + 1) * CLIPS]), np.arange(CLIPS))


def test_samples_are_numbered_without_gaps(dataset):
    source = reader(dataset)
    for step in range(20):
        np.testing.assert_array_equal(np.sort(source.batch(step).samples), np.arange(24 * step, 24 * step + 24))


def test_rows_are_those_of_the_clips(dataset):
    source = reader(dataset, batch_size=CLIPS)
    batch = source.batch(0)
    np.testing.assert_array_equal(batch.log_mel[:, 0, 0], batch.rows)


@pytest.mark.parametrize("step", [0, 9, 10, 40])
@pytest.mark.parametrize("world_size", [2, 4, 5, 7, 24])
def test_ranks_share_the_batch_of_one(dataset, world_size, step):
    """Step 9 crosses into the second epoch; 24 clips do not divide over 5 or 7 ranks."""
    parts = [reader(dataset, rank=rank, world_size=world_size).batch(step) for rank in range(world_size)]
    same(joined(parts), reader(dataset).batch(step))


@pytest.mark.parametrize(("world_size", "shares"), [(5, [4, 5, 5, 5, 5]), (7, [3, 3, 4, 3, 4, 3, 4])])
def test_uneven_shares_differ_by_one(dataset, world_size, shares):
    assert [len(reader(dataset, rank=r, world_size=world_size).batch(0).rows) for r in range(world_size)] == shares


def test_after_a_restart_the_step_is_the_same(dataset):
    source = reader(dataset)
    for step in range(30):
        last = source.batch(step)
    same(reader(dataset).batch(29), last)


def test_steps_may_be_read_in_any_order(dataset):
    source = reader(dataset)
    wanted = {step: reader(dataset).batch(step) for step in (25, 3, 60, 0)}
    for step, batch in wanted.items():
        same(source.batch(step), batch)


def test_without_a_cache_the_batches_are_the_same(dataset):
    source, small = reader(dataset), reader(dataset, cache_bytes=0)
    for step in range(15):
        same(small.batch(step), source.batch(step))


def test_row_groups_of_the_past_are_dropped(dataset):
    """Of 6 row groups, 2 columns have at most 2 each between two rounds."""
    source = reader(dataset, cache_bytes=0, batch_size=8)
    held = []
    for step in range(100):
        source.batch(step)
        held.append(len(source._groups))
    assert max(held[: CLIPS // 8]) <= 4 and max(held) <= 6


def test_a_dataset_that_fits_is_read_once(dataset, monkeypatch):
    source = reader(dataset)
    list(source.batches(0, 10))
    monkeypatch.setattr(source._source, "columns", None)
    list(source.batches(10, 40))


def test_epochs_have_different_orders(dataset):
    orders = [tuple(reader(dataset).epoch_order(epoch)) for epoch in range(4)]
    assert len(set(orders)) == 4


def test_seeds_have_different_orders(dataset):
    assert (reader(dataset, seed=1).epoch_order(0) != reader(dataset, seed=2).epoch_order(0)).any()


def test_a_window_mixes_clips_of_its_row_groups(dataset):
    order = reader(dataset, window=64).epoch_order(0)
    assert np.abs(np.diff(order)).mean() > CLIPS / 5


def frames_by_epoch(dataset, epochs):
    """The places in time of every crop, [epochs, clips, crop], by row."""
    source = reader(dataset, batch_size=CLIPS)
    places = np.empty((epochs, CLIPS, CROP), int)
    for epoch in range(epochs):
        batch = source.batch(epoch)
        places[epoch, batch.rows] = batch.log_mel[:, 1]
    return places


def test_long_clips_give_one_contiguous_piece(dataset):
    places = frames_by_epoch(dataset, 3)[:, VALID >= CROP]
    np.testing.assert_array_equal(places - places[:, :, :1], np.broadcast_to(np.arange(CROP), places.shape))


def test_pieces_lie_within_the_valid_frames(dataset):
    assert (frames_by_epoch(dataset, 3)[:, VALID >= CROP].max(axis=(0, 2)) < VALID[VALID >= CROP]).all()


def test_short_clips_are_repeated_cyclically(dataset):
    places = frames_by_epoch(dataset, 3)[:, VALID < CROP]
    wanted = (places[:, :, :1] + np.arange(CROP)) % VALID[VALID < CROP][:, None]
    np.testing.assert_array_equal(places, wanted)


def test_padding_is_never_read(dataset):
    """Padding is negative; the frames of these clips are not."""
    source = reader(dataset, batch_size=CLIPS)
    assert min(source.batch(epoch).log_mel.min() for epoch in range(3)) == 0


def test_a_crop_may_be_longer_than_the_clip_array(dataset):
    batch = reader(dataset, crop_frames=112, batch_size=CLIPS).batch(0)
    wanted = (batch.log_mel[:, 1, :1] + np.arange(112)) % VALID[batch.rows][:, None]
    np.testing.assert_array_equal(batch.log_mel[:, 1], wanted)


def test_crops_differ_from_epoch_to_epoch(dataset):
    starts = frames_by_epoch(dataset, 2)[:, VALID > 2 * CROP, 0]
    assert (starts[0] != starts[1]).mean() > 0.8


def test_every_start_of_a_crop_occurs(dataset):
    clip = int(np.flatnonzero(VALID == 20)[0])
    assert set(frames_by_epoch(dataset, 60)[:, clip, 0]) == set(range(5))


def test_the_crop_does_not_depend_on_the_batch_size(dataset):
    big, small = reader(dataset, batch_size=60).batch(2), reader(dataset, batch_size=12).batch(10)
    np.testing.assert_array_equal(by_sample(big).log_mel[:12], by_sample(small).log_mel)


@pytest.mark.parametrize("prefetch", [1, 2, 50])
def test_reading_ahead_gives_the_same_batches(dataset, prefetch):
    batches = list(reader(dataset).batches(5, 17, prefetch))
    assert len(batches) == 12
    for step, batch in enumerate(batches, start=5):
        same(batch, reader(dataset).batch(step))


def test_a_batch_in_hand_is_never_overwritten(dataset):
    """Kept as itself, as a view and as a tensor; batches let go of are overwritten."""
    source, kept, copies = reader(dataset), [], []
    for step, batch in enumerate(source.batches(0, 60)):
        if step % 3 == 0:
            log_mel = batch.log_mel
            kept.append((log_mel, log_mel[2:], torch.from_numpy(log_mel))[step // 3 % 3])
            copies.append(np.array(kept[-1]))
            del log_mel
        del batch
    for one, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(np.asarray(one), copy)


def test_arrays_of_batches_let_go_of_are_used_again(dataset):
    source = reader(dataset)
    arrays = set()
    for step in range(30):
        arrays.add(source.batch(step).log_mel.ctypes.data)
    assert len(arrays) == 1


def test_no_steps_give_no_batches(dataset):
    assert list(reader(dataset).batches(3, 3)) == []


def test_leaving_early_ends_the_thread(dataset):
    batches = reader(dataset).batches(0, 1_000)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shard-reader")]


def test_fewer_clips_than_ranks_are_a_users_mistake(dataset):
    with pytest.raises(UserError, match="batch_size 4 is less than a clip for each of 5 workers"):
        reader(dataset, batch_size=4, world_size=5)


def test_the_small_dataset_is_read(small_dataset):
    batch = ShardReader(small_dataset, crop_frames=128, batch_size=40, seed=0).batch(0)
    assert (batch.log_mel.shape, batch.log_mel.dtype) == ((40, 128, 128), np.float16)
    assert sorted(batch.rows) == list(range(40))
