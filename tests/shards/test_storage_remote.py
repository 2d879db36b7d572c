"""Objects of a real S3 server on loopback appear whole or not at all."""

import gc

import numpy as np
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.config import FrontEndConfig
from ajepa.shards import writer
from ajepa.shards.writer import shard_path, write_shard

pytestmark = pytest.mark.process
PART = 10 << 20  # bytes that pyarrow uploads at a time


def read(bucket, key):
    """What lies under a key, None: nothing; past the wire."""
    try:
        return bucket.Object(key).get()["Body"].read()
    except ClientError:
        return None


@pytest.mark.parametrize("size", [0, 1, PART + 5])
def test_an_object_has_all_its_bytes(s3, size):
    content = np.random.default_rng(size).bytes(size)
    with storage.atomic_output("s3://sounds/whole") as stream:
        stream.write(content[:7])
        stream.write(content[7:])
        assert size == 0 or read(s3, "whole") != content
    assert read(s3, "whole") == content


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("size", [5, 2 * PART + 5])
def test_an_exception_leaves_no_object(s3, error, size):
    """pyarrow would publish what it was given when its stream is collected."""
    with pytest.raises(error), storage.atomic_output("s3://sounds/half") as stream:
        stream.write(bytes(size))
        raise error
    gc.collect()
    assert read(s3, "half") is None


def test_an_exception_leaves_the_old_object(s3):
    storage.write_text("s3://sounds/old", "old")
    with pytest.raises(RuntimeError), storage.atomic_output("s3://sounds/old") as stream:
        stream.write(b"new")
        raise RuntimeError
    gc.collect()
    assert read(s3, "old") == b"old"


def test_an_upload_through_a_short_break_is_whole(s3, wire, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "pause", lambda *_: wire.mend())
    wire.cut_at = b"parted"
    content = np.random.default_rng(0).bytes(2 * PART)
    with storage.atomic_output("s3://sounds/parted") as stream:
        stream.write(content)
    assert read(s3, "parted") == content


@pytest.mark.parametrize("part", [b"partNumber=1", b"partNumber=2"])
def test_a_store_that_goes_away_during_an_upload_shows_no_object(s3, wire, monkeypatch, part):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    wire.cut_at = part
    with (
        pytest.raises(storage.UnreachableError, match="s3://sounds/lost"),
        storage.atomic_output("s3://sounds/lost") as stream,
    ):
        stream.write(bytes(2 * PART))
    wire.mend()
    gc.collect()
    assert read(s3, "lost") is None


def test_a_shard_that_fails_in_the_middle_is_no_shorter_one(s3, write_wav, tmp_path, monkeypatch):
    """Its Parquet footer is written on the way out, so the object would be a valid shard of fewer clips."""
    uri = write_wav(tmp_path / "a.wav", np.zeros(8000))
    clip = {"uri": uri, "start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}
    clips = pa.Table.from_pylist([clip | {"clip_id": str(i)} for i in range(4)], MANIFEST_SCHEMA)
    monkeypatch.setattr(writer, "ROW_GROUP", 1)
    make_row, made = writer.make_row, []

    def fails_at_the_third(*args):
        if len(made) == 2:
            raise MemoryError
        made.append(1)
        return make_row(*args)

    monkeypatch.setattr(writer, "make_row", fails_at_the_third)
    with pytest.raises(MemoryError):
        write_shard(clips, 0, "s3://sounds/shards", FrontEndConfig(clip_frames=64))
    gc.collect()
    assert len(made) == 2 and read(s3, shard_path("shards", "status=ok", 0)) is None
