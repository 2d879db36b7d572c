"""Rows of the shard contract: a log-mel to bytes and back."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest

from ajepa.config import FrontEndConfig
from ajepa.shards.schema import decode_log_mels, encode_row, ok_schema

CONFIG = FrontEndConfig(n_mels=16, clip_frames=32)
SILENCE = np.float16(np.log(1e-6))


def log_mel(frames, seed=0):
    return np.random.default_rng(seed).normal(-5, 3, (16, frames)).astype(np.float32)


def column(*rows):
    return pa.array([encode_row(row, CONFIG)["log_mel"] for row in rows], pa.binary())


@pytest.mark.parametrize("frames", [1, 20, 32])
def test_a_log_mel_comes_back_in_float16(frames):
    stored = decode_log_mels(column(log_mel(frames)), 16, 32)
    np.testing.assert_array_equal(stored[0, :, :frames], log_mel(frames).astype(np.float16))


@pytest.mark.parametrize(("frames", "valid"), [(1, 1), (20, 20), (32, 32), (50, 32)])
def test_num_frames_counts_the_valid_ones(frames, valid):
    assert encode_row(log_mel(frames), CONFIG)["num_frames"] == valid


def test_padding_is_silence():
    stored = decode_log_mels(column(log_mel(20)), 16, 32)
    np.testing.assert_array_equal(stored[0, :, 20:], SILENCE)


def test_frames_beyond_the_clip_are_cut():
    assert encode_row(log_mel(50), CONFIG) == encode_row(log_mel(50)[:, :32], CONFIG)


@pytest.mark.parametrize(("name", "power"), [("bin_sum", 1), ("bin_sumsq", 2)])
def test_sums_are_over_the_stored_valid_frames(name, power):
    stored = log_mel(20).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(encode_row(log_mel(20), CONFIG)[name], (stored**power).sum(axis=1), rtol=1e-14)


def test_the_digest_is_that_of_the_bytes():
    row = encode_row(log_mel(20), CONFIG)
    assert row["digest"] == hashlib.blake2b(row["log_mel"], digest_size=16).hexdigest()


def test_the_layout_stands_in_the_metadata():
    metadata = ok_schema(CONFIG).metadata
    assert metadata[b"ajepa.contract"] == b"2"
    assert json.loads(metadata[b"ajepa.log_mel"]) == {
        "shape": [16, 32],
        "dtype": "<f2",
        "axes": ["mel", "frame"],
        "order": "C",
    }


def test_sliced_columns_are_decoded():
    rows = [log_mel(32, seed) for seed in range(5)]
    np.testing.assert_array_equal(decode_log_mels(column(*rows)[1:4], 16, 32), np.stack(rows[1:4]).astype(np.float16))


@pytest.mark.parametrize("sizes", [(5,), (2, 3), (1, 0, 4)])
def test_chunked_columns_are_decoded(sizes):
    rows = [log_mel(32, seed) for seed in range(5)]
    starts = np.cumsum([0, *sizes])
    chunks = pa.chunked_array([column(*rows[a : a + n]) for a, n in zip(starts, sizes, strict=False)])
    np.testing.assert_array_equal(decode_log_mels(chunks, 16, 32), np.stack(rows).astype(np.float16))


@pytest.mark.parametrize("empty", [pa.array([], pa.binary()), pa.chunked_array([], pa.binary())])
def test_no_rows_are_decoded_to_no_rows(empty):
    assert decode_log_mels(empty, 16, 32).shape == (0, 16, 32)


def test_one_chunk_is_not_copied():
    array = column(log_mel(32))
    stored = decode_log_mels(array, 16, 32)
    assert stored.__array_interface__["data"][0] == array.buffers()[2].address


@pytest.mark.parametrize(
    "rows",
    [[b"x" * 1023], [b"x" * 1025], [b""], [b"x" * 1024, b"x"], [b"x" * 1023, b"x" * 1025], [b"x" * 1024, None]],
)
def test_a_row_of_the_wrong_length_is_refused(rows):
    with pytest.raises(ValueError, match="does not have the 1024 bytes"):
        decode_log_mels(pa.array(rows, pa.binary()), 16, 32)
