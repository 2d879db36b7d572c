"""Clips in, one finished shard out. A shard is a pure function of its clips and the front end: written again,
by any worker, it has the same bytes."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ajepa import storage
from ajepa.audio.decode import decode_clip
from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel
from ajepa.audio.read_ahead import Opener, open_clip, read_ahead
from ajepa.choices import KeepOrDrop
from ajepa.config import FrontEndConfig
from ajepa.shards.duplicates import refuse_silence
from ajepa.shards.schema import BAD, BAD_SCHEMA, OK, ROW_GROUP, encode_row, ok_schema


@dataclass
class ShardResult:
    """What one shard, or another block of clips, came to."""

    index: int
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut: int = 0  # clips longer than clip_frames

    @property
    def bad(self) -> int:
        return self.errors.total()


def shard_path(output: str, status: str, index: int) -> str:
    return storage.join(output, status, f"shard-{index:05d}.parquet")


def shard_number(name: str) -> int:
    """The index in a name that `shard_path` made."""
    return int(name.removesuffix(".parquet").rpartition("-")[2])


def make_row(clip: dict[str, Any], log_mel: LogMel, opener: Opener = open_clip) -> tuple[dict[str, Any], bool]:
    """One manifest row to one ok row, and whether its audio was cut to the clip length.

    Raises:
        AudioError: the clip is bad; the message is its reason.
    """
    config = log_mel.config
    decoded, cut = decode_clip(clip, config.sample_rate, config.clip_samples, opener)
    values = log_mel(torch.from_numpy(decoded.waveform)).numpy()
    made = {"duration_s": decoded.seconds, "source_rate": decoded.source_rate}
    return clip | made | encode_row(values, config), cut


def write_shard(
    clips: pa.Table, index: int, output: str, config: FrontEndConfig, silent: KeepOrDrop = "keep"
) -> ShardResult:
    """Decode, featurise and write one shard of `output`; the ok file appears last and marks the shard finished.
    `silent` tells what becomes of clips that are: see `refuse_silence`.

    Memory holds one row group of log-mels, whatever the number of clips.
    """
    front_end, schema = LogMel(config), ok_schema(config)
    manifest_rows = clips.to_pylist()
    paths = shard_path(output, OK, index), shard_path(output, BAD, index)
    with (
        torch.inference_mode(),
        read_ahead(manifest_rows) as opener,
        block_output(*paths, index, schema) as block,
    ):
        rows: list[dict[str, Any]] = []
        for clip in manifest_rows:
            try:
                row, cut = make_row(clip, front_end, opener)
                if silent == "drop":
                    refuse_silence(row, config)
                rows.append(row)
                block.result.cut += cut
            except AudioError as error:
                block.reject(clip, error)
            if len(rows) == ROW_GROUP:
                block.write(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            block.write(pa.Table.from_pylist(rows, schema))
    return block.result


class BlockOutput:
    """Takes the rows of one block of clips, and counts them; made by `block_output`."""

    def __init__(self, index: int, parquet: pq.ParquetWriter) -> None:
        self.result = ShardResult(index)
        self.rejected: list[dict[str, Any]] = []
        self._parquet = parquet

    def write(self, rows: pa.Table) -> None:
        """Add ok rows as a row group."""
        self._parquet.write_table(rows)
        self.result.ok += rows.num_rows

    def reject(self, clip: dict[str, Any], error: AudioError) -> None:
        """Add a manifest row to the bad rows, with its reason "stage: reason"."""
        self.rejected.append(clip | {"error": str(error)})
        self.result.errors[str(error).partition(":")[0]] += 1


@contextlib.contextmanager
def block_output(ok_path: str, bad_path: str, index: int, schema: pa.Schema) -> Iterator[BlockOutput]:
    """The two Parquet files of a block: ok rows in the order they come, and, if there are any, bad rows.

    The ok file appears last, and only when the with-block ends without an error: it marks the block finished.
    """
    storage.delete(bad_path)  # of an attempt that did not finish
    with (
        storage.atomic_output(ok_path) as stream,
        pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as parquet,
    ):
        block = BlockOutput(index, parquet)
        yield block
        if not block.result.ok:
            block.write(schema.empty_table())
        if block.rejected:
            with storage.atomic_output(bad_path) as bad_stream:
                pq.write_table(pa.Table.from_pylist(block.rejected, BAD_SCHEMA), bad_stream)
