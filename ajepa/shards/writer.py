"""Clips in, one finished shard out. A shard is a pure function of its clips and the front end: written again,
by any worker, it has the same bytes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajepa import storage
from ajepa.audio.decode import AudioError, decode
from ajepa.audio.logmel import LogMel
from ajepa.config import FrontEndConfig
from ajepa.shards.schema import BAD, BAD_SCHEMA, OK, ROW_GROUP, encode_row, ok_schema


@dataclass
class ShardResult:
    """What one shard came to."""

    index: int
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut: int = 0  # clips longer than clip_frames

    @property
    def bad(self) -> int:
        return self.errors.total()


def shard_path(output: str, status: str, index: int) -> str:
    return storage.join(output, status, f"shard-{index:05d}.parquet")


def make_row(clip: dict[str, Any], log_mel: LogMel) -> tuple[dict[str, Any], bool]:
    """One manifest row to one ok row, and whether its audio was cut to the clip length.

    Raises:
        AudioError: the clip is bad; the message is its reason.
    """
    config = log_mel.config
    limit = config.clip_samples / config.sample_rate
    # One sample beyond the limit is enough to know that the audio goes on.
    wanted = min(limit + 2 / config.sample_rate, clip["duration_s"] or np.inf)
    waveform, seconds, rate = decode(clip["uri"], config.sample_rate, clip["start_s"], wanted)
    cut = len(waveform) > config.clip_samples
    waveform = waveform[: config.clip_samples]
    values = log_mel(torch.from_numpy(np.ascontiguousarray(waveform))).numpy()
    return clip | {"duration_s": min(seconds, limit), "source_rate": rate} | encode_row(values, config), cut


def write_shard(clips: pa.Table, index: int, output: str, config: FrontEndConfig) -> ShardResult:
    """Decode, featurise and write one shard of `output`; the ok file appears last and marks the shard finished.

    Memory holds one row group of log-mels, whatever the number of clips.
    """
    result = ShardResult(index)
    front_end = LogMel(config)
    schema = ok_schema(config)
    bad_path = shard_path(output, BAD, index)
    storage.delete(bad_path)  # of an attempt that did not finish
    bad_rows: list[dict[str, Any]] = []
    with (
        torch.inference_mode(),
        storage.atomic_output(shard_path(output, OK, index)) as stream,
        pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as parquet,
    ):
        rows: list[dict[str, Any]] = []
        for clip in clips.to_pylist():
            try:
                row, cut = make_row(clip, front_end)
                rows.append(row)
                result.cut += cut
            except AudioError as error:
                bad_rows.append(clip | {"error": str(error)})
                result.errors[str(error).partition(":")[0]] += 1
            if len(rows) == ROW_GROUP:
                parquet.write_table(pa.Table.from_pylist(rows, schema))
                result.ok += len(rows)
                rows = []
        if rows or not result.ok:
            parquet.write_table(pa.Table.from_pylist(rows, schema))
            result.ok += len(rows)
        if bad_rows:
            with storage.atomic_output(bad_path) as bad_stream:
                pq.write_table(pa.Table.from_pylist(bad_rows, BAD_SCHEMA), bad_stream)
    return result
