"""The cursor: saved in the middle of an epoch, restored on any number of ranks, the next batches are those."""

import dataclasses
import json

import pytest
from helpers.reader_data import joined, reader, same, write_shards

from ajepa.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("cursor")))


def ranks(dataset, world_size, **changes):
    return [reader(dataset, rank=rank, world_size=world_size, **changes) for rank in range(world_size)]


def go_on(readers, state, steps):
    """The next batches of all ranks after a restore, and the state then."""
    streams = []
    for one in readers:
        one.load_state_dict(state)
        streams.append(list(one.batches(one.step, one.step + steps)))
    return [joined(list(parts)) for parts in zip(*streams, strict=True)], readers[-1].state_dict()


def test_the_next_batches_after_a_restore_are_those_of_a_run_never_stopped(dataset):
    """Stopped at step 14 of 9.9 an epoch; the state goes through JSON as it does in a checkpoint."""
    source = reader(dataset)
    stream = source.batches(0, 40)
    for _ in range(14):
        next(stream)
    state = json.loads(json.dumps(source.state_dict()))
    wanted = [next(stream) for _ in range(20)]
    stream.close()
    batches, _ = go_on([reader(dataset)], state, 20)
    for batch, other in zip(batches, wanted, strict=True):
        same(batch, other)


def test_the_number_of_ranks_may_change_at_any_step(dataset):
    """2 ranks, then 3, then 1, each cut in the middle of an epoch."""
    whole = reader(dataset, holdout=30)
    state, batches = whole.state_dict(), []
    for world_size, steps in ((2, 5), (3, 9), (1, 7)):
        more, state = go_on(ranks(dataset, world_size, holdout=30), state, steps)
        batches += more
    for step, batch in enumerate(batches):
        same(batch, whole.batch(step))


def test_the_cursor_counts_batches_in_hand_not_those_read_ahead(dataset):
    source = reader(dataset)
    stream = source.batches(3, 30, prefetch=8)
    steps = [source.step for _, _ in zip(range(4), stream, strict=False)]
    assert steps == [4, 5, 6, 7]
    stream.close()
    assert source.state_dict()["step"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, "seed is 5, was 0"),
        ({"batch_size": 12}, "batch_size is 12, was 24"),
        ({"holdout": 3}, "holdout is 3, was 0"),
        ({"window": 9}, "window is 9, was 2"),
        ({"crop_frames": 32}, "crop_frames is 32, was 16"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_their_name(dataset, changes, message):
    with pytest.raises(UserError, match=f"another stream of clips: {message}. Go on"):
        reader(dataset, **changes).load_state_dict(reader(dataset).state_dict())


def test_a_state_of_other_clips_is_refused(dataset):
    other = dataclasses.replace(dataset, content_hash="f" * 32)
    with pytest.raises(UserError, match=f"content_hash is {'f' * 32}, was {dataset.content_hash}"):
        reader(other).load_state_dict(reader(dataset).state_dict())


def test_a_state_of_the_same_clips_in_other_shards_is_refused(dataset, tmp_path):
    """The content hash does not see it; the order of an epoch does."""
    other = write_shards(str(tmp_path), shards=(130, 107))
    assert other.content_hash == dataset.content_hash
    with pytest.raises(UserError, match="of clips: shard_sizes is"):
        reader(other).load_state_dict(reader(dataset).state_dict())


def test_a_state_of_another_format_is_refused(dataset):
    state = reader(dataset).state_dict() | {"format": 99}
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        reader(dataset).load_state_dict(state)


def test_a_refused_state_changes_nothing(dataset):
    source = reader(dataset)
    source.load_state_dict(source.state_dict() | {"step": 6})
    with pytest.raises(UserError):
        source.load_state_dict(reader(dataset, seed=4).state_dict())
    assert source.step == 6
