"""Datasets of tiny clips that carry their own row number, made without audio."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import ShardDataset, finish_dataset
from ajepa.shards.reader import Batch, ShardReader
from ajepa.shards.schema import OK, ROW_GROUP, encode_row, ok_schema
from ajepa.shards.writer import shard_path

CONFIG = FrontEndConfig(n_mels=16, clip_frames=48)
SHARDS = (100, 7, 0, 130)  # rows: 6 row groups, one of them alone in its shard, one shard empty
CLIPS = sum(SHARDS)
VALID = 1 + np.arange(CLIPS) * 11 % 48  # valid frames, every length from 1 to 48
CROP = 16


def write_shards(output: str, shards=SHARDS, config=CONFIG, label=lambda clip: []) -> ShardDataset:
    """Clips whose bin 0 holds their row in storage order and bin 1 the frame's place in time."""
    storage.make_folder(storage.join(output, OK))
    clips = iter(range(sum(shards)))
    for index, count in enumerate(shards):
        rows = []
        for clip in (next(clips) for _ in range(count)):
            valid = min(VALID[clip % CLIPS], config.clip_frames)
            log_mel = np.zeros((16, valid), np.float32)
            log_mel[0], log_mel[1] = clip, np.arange(valid)
            manifest = {"clip_id": f"{clip:04d}", "uri": "", "start_s": 0.0, "split": "", "fold": -1}
            rows.append(manifest | {"labels": label(clip)} | encode_row(log_mel, config))
        table = pa.Table.from_pylist(rows, ok_schema(config))
        with storage.atomic_output(shard_path(output, OK, index)) as stream:
            pq.write_table(table, stream, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
    return finish_dataset(output, config, [], sum(shards), {})


def reader(dataset: ShardDataset, **changes) -> ShardReader:
    return ShardReader(dataset, **({"crop_frames": CROP, "batch_size": 24, "seed": 0, "window": 2} | changes))


def same(one: Batch, other: Batch) -> None:
    for name in ("log_mel", "samples", "rows"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def joined(parts: list[Batch]) -> Batch:
    """One batch of several, in their order."""
    return Batch(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("log_mel", "samples", "rows")))


def by_sample(*parts: Batch) -> Batch:
    """One batch of several, in the order of the stream."""
    batch = joined(list(parts))
    order = np.argsort(batch.samples)
    return Batch(batch.log_mel[order], batch.samples[order], batch.rows[order])
