"""The reader on an object store: the same batches as from a local copy, through a short break too."""

from pathlib import Path

import pytest
from helpers.loopback_s3 import ask_once
from helpers.reader_data import reader, same, write_shards

from ajepa import retries, storage
from ajepa.errors import UserError
from ajepa.shards import shuffle_window
from ajepa.shards.dataset import open_dataset

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("remote") / "shards"))


@pytest.fixture
def remote(wire, local):
    """The same dataset in the bucket, behind the wire."""
    for name, _ in storage.list_files(local.path):
        with storage.atomic_output(f"s3://sounds/reader/{name}") as stream:
            stream.write(Path(local.path, name).read_bytes())
    return open_dataset("s3://sounds/reader")


def test_batches_of_a_bucket_are_those_of_the_local_copy(remote, local):
    for batch, wanted in zip(reader(remote).batches(5, 15), reader(local).batches(5, 15), strict=True):
        same(batch, wanted)


def test_a_short_break_is_waited_out(remote, local, wire, monkeypatch):
    """The connection is cut in the middle of the stream and there again when the reader has waited once."""
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(shuffle_window, "GROUPS_AHEAD", 1)  # all there are would be asked for before the cut
    waits = []
    monkeypatch.setattr(retries, "pause", lambda seconds, _: (waits.append(seconds), wire.mend()))
    stream = reader(remote, cache_bytes=0).batches(0, 20, prefetch=1)
    for step, wanted in enumerate(reader(local).batches(0, 20)):
        if step == 4:
            wire.break_now()
        same(next(stream), wanted)
    assert waits


def test_a_store_that_stays_away_is_no_damaged_shard(remote, wire, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    source = reader(remote, cache_bytes=0)
    source.batch(0)
    wire.break_now()
    with pytest.raises(storage.UnreachableError, match="cannot reach 's3://sounds/reader/status=ok/shard-0"):
        list(source.batches(1, 20))


@pytest.mark.parametrize("content", [None, b"garbage" * 100])
def test_a_damaged_object_is_named_at_once(remote, monkeypatch, content):
    monkeypatch.setattr(retries, "pause", lambda *_: pytest.fail("nothing here is worth another try"))
    path = f"{remote.path}/{remote.shards[3].name}"
    if content is None:
        storage.delete(path)
    else:
        with storage.atomic_output(path) as stream:
            stream.write(content)
    with pytest.raises(UserError, match=f"{path}: (is missing|cannot be read)"):
        list(reader(remote).batches(0, 10))
