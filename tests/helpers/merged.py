"""What the tests of merging share: the front end, and looking at what was merged."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import open_dataset
from ajepa.shards.merge import merge_datasets
from ajepa.shards.schema import BAD, OK

CONFIG = FrontEndConfig(clip_frames=64, n_mels=64)
NAMES = ["a", "b", "c"]


def merge(paths, output):
    return sum(merge_datasets(paths, str(output)))


def rows(path, status, columns):
    """Rows of a dataset by clip id."""
    files = sorted((Path(path) / status).iterdir())
    found = [row for file in files for row in pq.ParquetFile(file).read(columns=["clip_id", *columns]).to_pylist()]
    return {row.pop("clip_id"): row for row in found}


def assert_is(path, expected):
    """Bit for bit."""
    merged = open_dataset(str(path))
    np.testing.assert_array_equal(merged.statistics.mean, expected.statistics.mean)
    np.testing.assert_array_equal(merged.statistics.std, expected.statistics.std)
    assert merged.statistics.frames == expected.statistics.frames
    assert merged.content_hash == expected.content_hash
    assert merged.label_names == expected.label_names
    assert merged.info["counts"] == expected.info["counts"]
    for status, columns in ((OK, ["labels", "digest", "log_mel", "bin_sum"]), (BAD, ["labels", "uri", "error"])):
        assert rows(path, status, columns) == rows(expected.path, status, columns)
