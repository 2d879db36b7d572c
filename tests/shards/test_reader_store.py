"""A training set in a store that no cache holds: what the readers ask for, and a store that goes away meanwhile."""

from collections import Counter
from pathlib import Path
from time import sleep

import pytest
from helpers.loopback_s3 import ask_once
from helpers.reader_data import CONFIG, by_sample, reader, same, write_shards

from ajepa import retries, storage
from ajepa.errors import UserError
from ajepa.shards import shuffle_window
from ajepa.shards.dataset import open_dataset
from ajepa.shards.schema import ROW_GROUP

pytestmark = pytest.mark.process
SHARDS = 12  # of one row group each
STEPS = SHARDS * ROW_GROUP // 24  # of an epoch
GROUP_BYTES = 2 * CONFIG.n_mels * CONFIG.clip_frames * ROW_GROUP


@pytest.fixture(autouse=True)
def few_ahead(monkeypatch):
    """As many as there are would be asked for at once."""
    monkeypatch.setattr(shuffle_window, "GROUPS_AHEAD", 1)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("store") / "shards"), (ROW_GROUP,) * SHARDS)


@pytest.fixture
def remote(wire, local):
    for name, _ in storage.list_files(local.path):
        with storage.atomic_output(f"s3://sounds/{Path(local.path).parent.name}/{name}") as stream:
            stream.write(Path(local.path, name).read_bytes())
    dataset = open_dataset(f"s3://sounds/{Path(local.path).parent.name}")
    wire.reset_counts()
    return dataset


def test_a_row_group_is_one_request_after_the_footer_of_its_shard(remote, wire):
    """Two columns, each of whole row groups; one of them begins within its first, which is asked for again."""
    source = reader(remote, cache_bytes=0)
    list(source.batches(0, STEPS))
    assert wire.asked == {"HEAD": SHARDS, "GET": SHARDS + SHARDS + 1}
    list(source.batches(STEPS, 2 * STEPS))
    assert wire.asked["HEAD"] == SHARDS and wire.asked["GET"] <= SHARDS + 2 * (SHARDS + 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_with_room_for_it_an_epoch_asks_for_each_row_group_once(remote, local, wire, ranks):
    room = {"cache_bytes": (SHARDS - 1) * GROUP_BYTES}
    shares = [list(reader(remote, rank=r, world_size=ranks, **room).batches(0, STEPS)) for r in range(ranks)]
    assert wire.asked["GET"] - wire.asked["HEAD"] == SHARDS
    for parts, wanted in zip(zip(*shares, strict=True), reader(local).batches(0, STEPS), strict=True):
        same(by_sample(*parts), by_sample(wanted))


def test_what_is_kept_leaves_when_the_epoch_is_past_it(remote):
    source = reader(remote, cache_bytes=(SHARDS - 1) * GROUP_BYTES)
    held = [len(source._groups) for _ in source.batches(0, 3 * STEPS)]
    assert max(held) < SHARDS


def test_two_readers_go_on_with_the_same_clips_after_a_break(remote, local, wire, monkeypatch):
    """The store is away from the middle of an epoch until both readers have waited for it."""
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", (0.2,) * 50)
    waits = Counter()

    def pause(seconds, stopped):
        waits[len(waits)] += 1
        sleep(seconds)
        if len(waits) >= 4:
            wire.mend()

    monkeypatch.setattr(retries, "pause", pause)
    readers = [reader(remote, cache_bytes=0, rank=r, world_size=2).batches(0, 2 * STEPS, prefetch=1) for r in (0, 1)]
    for step, wanted in enumerate(reader(local).batches(0, 2 * STEPS)):
        if step == STEPS // 2:
            wire.break_now()
        same(by_sample(*(next(stream) for stream in readers)), by_sample(wanted))
    assert len(waits) >= 4 and not wire.cut


@pytest.mark.parametrize(("batch", "ranks"), [(24, 1), (256, 1), (256, 8), (8192, 64)])
def test_a_rank_asks_a_store_for_a_number_of_row_groups_ahead_whatever_the_batch(batch, ranks, monkeypatch):
    monkeypatch.setattr(shuffle_window, "GROUPS_AHEAD", 16)
    window = shuffle_window.ShuffleWindow(64, batch, 1 << 20, ranks, late=True)
    rows = window.steps_ahead * batch / ranks
    assert shuffle_window.GROUPS_AHEAD * ROW_GROUP <= rows < shuffle_window.GROUPS_AHEAD * ROW_GROUP + batch / ranks


def replace(dataset, shard, content):
    with storage.atomic_output(f"{dataset.path}/{dataset.shards[shard].name}") as stream:
        stream.write(content)


def test_an_object_deleted_after_its_footer_was_read_is_named(remote):
    source = reader(remote, cache_bytes=0)
    source._source.read(3)
    storage.delete(f"{remote.path}/{remote.shards[3].name}")
    for _ in range(2):  # asked for under its open file, then opened anew
        with pytest.raises(UserError, match=r"shard-00003.parquet: (cannot be read|is missing).*Restore the shard"):
            source._source.read(3)


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_an_object_cut_after_its_footer_was_read_is_named(remote, local, share):
    """pyarrow leaves memory as it was where an answer is shorter than what was asked for: the digests tell."""
    source = reader(remote, cache_bytes=0)
    wanted = source._source.read(3).log_mels.copy()
    content = Path(local.path, local.shards[3].name).read_bytes()
    replace(remote, 3, content[: int(len(content) * share)])
    try:
        found = source._source.read(3).log_mels
    except UserError as error:
        assert "shard-00003.parquet: " in str(error)
    else:
        assert (found == wanted).all()
    with pytest.raises(UserError, match=r"shard-00003.parquet: cannot be read"):
        reader(remote)._source.read(3)
    replace(remote, 3, content)
    assert len(source._source.read(3).log_mels) == ROW_GROUP


@pytest.mark.parametrize("place", range(-400, 0, 7))
def test_a_footer_with_a_wrong_byte_is_read_alike_or_named(remote, local, place):
    wanted = reader(local)._source.read(3).log_mels
    content = bytearray(Path(local.path, local.shards[3].name).read_bytes())
    content[place] ^= 0x41
    replace(remote, 3, bytes(content))
    try:
        found = reader(remote)._source.read(3).log_mels
    except UserError as error:
        assert "shard-00003.parquet" in str(error)
    else:
        assert (found == wanted).all()
