"""The shard contract: a Parquet row a clip, and how a log-mel becomes bytes and back."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.config import FrontEndConfig

CONTRACT_VERSION = 2
ROW_GROUP = 64  # rows; a training window is made of row groups, so they stay small
LOCATED = "locator"  # the one column of a manifest row that may be null, and that shards of version 0.1 do not have
OK, BAD = "status=ok", "status=bad"  # hive partitions

_COMMON = list(MANIFEST_SCHEMA)  # a row starts as the manifest row it was made from
BAD_SCHEMA = pa.schema([*_COMMON, ("error", pa.string())])
OK_SCHEMA = pa.schema(
    [
        *_COMMON,
        ("source_rate", pa.int32()),  # sample rate of the file, in Hz
        ("num_frames", pa.int32()),  # valid frames; the rest of the row is padding
        ("bin_sum", pa.list_(pa.float64())),  # per mel bin, over the valid frames of the stored values
        ("bin_sumsq", pa.list_(pa.float64())),
        ("digest", pa.string()),  # BLAKE2b-128 of the log_mel bytes
        ("log_mel", pa.binary()),
    ]
)


def ok_schema(config: FrontEndConfig) -> pa.Schema:
    """OK_SCHEMA with the array's layout in the key-value metadata, for readers that know nothing else."""
    layout = {
        "shape": [config.n_mels, config.clip_frames],
        "dtype": "<f2",
        "axes": ["mel", "frame"],
        "order": "C",
    }
    return OK_SCHEMA.with_metadata({"ajepa.log_mel": json.dumps(layout), "ajepa.contract": str(CONTRACT_VERSION)})


def silence(config: FrontEndConfig) -> np.ndarray:
    """What is stored of digital zero: log(epsilon) everywhere, [n_mels, clip_frames] float16."""
    return np.full((config.n_mels, config.clip_frames), np.log(config.log_epsilon), "<f2")


def encode_row(log_mel: np.ndarray, config: FrontEndConfig) -> dict[str, Any]:
    """The computed columns of an ok row.

    Args:
        log_mel: [n_mels, frames] float32; frames past `clip_frames` are cut, missing ones are padded
            with the value of silence, log(epsilon).
    """
    frames = min(log_mel.shape[1], config.clip_frames)
    stored = silence(config)
    stored[:, :frames] = log_mel[:, :frames]
    valid = stored[:, :frames].astype(np.float64)
    data = stored.tobytes()
    return {
        "num_frames": frames,
        "bin_sum": valid.sum(axis=1).tolist(),
        "bin_sumsq": np.square(valid).sum(axis=1).tolist(),
        "digest": hashlib.blake2b(data, digest_size=16).hexdigest(),
        "log_mel": data,
    }


def decode_log_mels(column: pa.ChunkedArray | pa.Array, n_mels: int, frames: int) -> np.ndarray:
    """The `log_mel` column as [rows, n_mels, frames] float16, without copying when it is one chunk.

    Raises:
        ValueError: a row whose length is not n_mels * frames * 2 bytes.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # pyarrow gives a list of chunks for zero or several
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], pa.binary())
    size = n_mels * frames * 2
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, array.offset * 4) if len(array) else [0]
    if array.null_count or np.any(np.diff(offsets) != size):
        raise ValueError(f"a log_mel does not have the {size} bytes of [{n_mels}, {frames}] float16")
    if not len(array):
        return np.zeros((0, n_mels, frames), np.float16)
    flat = np.frombuffer(array.buffers()[2], "<f2", len(array) * size // 2, int(offsets[0]))
    return flat.reshape(len(array), n_mels, frames)
