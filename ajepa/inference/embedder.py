"""Clips in, one finished part of embeddings out. A part is a pure function of its clips, the encoder and the settings:
written again, by any worker, it holds the same rows."""

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa import storage
from ajepa.audio.decode import decode_clip
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.audio.read_ahead import Opener, open_clip, read_ahead
from ajepa.choices import Level, Pooling
from ajepa.config import PATCH
from ajepa.errors import UserError
from ajepa.inference.encoder import AudioEncoder
from ajepa.model.pooling import pool
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.schema import BAD, OK, ROW_GROUP
from ajepa.shards.writer import BlockOutput, ShardResult, block_output

# Frames of log-mel (at 256 bytes) in a row group of embeddings, beyond one clip: a bound where clips are long.
GROUP_FRAMES = ROW_GROUP * 3_000
AHEAD_FRAMES = GROUP_FRAMES  # decoded and not yet taken


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What an embedding is."""

    level: Level = "clip"
    pooling: Pooling = "mean"
    layers: tuple[int, ...] | None = None
    max_seconds: float = 600.0  # of a clip; longer ones are cut


def part_path(output: str, status: str, index: int) -> str:
    return storage.join(output, status, f"part-{index:05d}.parquet")


def embedding_schema(level: Level, dimension: int) -> pa.Schema:
    """A manifest row, then `embedding`: D floats of a clip; or a list of such vectors, with `time_ms` (the middle of
    each) for frames, and `grid` (rows, columns) for patches, of which (f, t) has index f * columns + t."""
    vector = pa.list_(pa.float32(), dimension)
    extra = {
        "clip": [("embedding", vector)],
        "frame": [("time_ms", pa.list_(pa.float32())), ("embedding", pa.list_(vector))],
        "patch": [("grid", pa.list_(pa.int32())), ("embedding", pa.list_(vector))],
    }[level]
    about = {"level": level, "dimension": dimension}
    return pa.schema([*MANIFEST_SCHEMA, *extra], metadata={"ajepa.embedding": json.dumps(about)})


class Embedder:
    """An encoder with settings: log-mels to vectors, files and shards to parts.

    Args:
        batch_size: clips computed at a time; by default as many as the device is busy with.
        threads: that read, decode and make log-mels beside the model.

    Raises:
        UserError: a layer that is not there.
    """

    def __init__(
        self, encoder: AudioEncoder, settings: EmbedSettings, *, batch_size: int | None = None, threads: int = 1
    ) -> None:
        self.encoder, self.settings, self.threads, self.batch_size = encoder, settings, threads, batch_size
        bins = encoder.front_end.n_mels
        try:  # the shortest input there is
            self.dimension = self.embed([torch.zeros(bins, 1)])[0].shape[1]
        except ValueError as error:
            raise UserError(f"--layers: {error}") from error
        self.schema = embedding_schema(settings.level, self.dimension)
        self.hop_ms = encoder.column_ms

    def log_mel(self, clip: dict[str, Any], opener: Opener = open_clip) -> tuple[Tensor, dict[str, Any], bool]:
        """A manifest row's log-mel [n_mels, frames], the row with the duration that was read, and whether it was cut.

        Raises:
            AudioError: the clip is bad.
        """
        rate = self.encoder.sample_rate
        decoded, cut = decode_clip(clip, rate, round(self.settings.max_seconds * rate), opener)
        try:
            log_mel, _ = self.encoder.log_mels(decoded.waveform, rate)
        except ValueError as error:
            raise AudioError(f"waveform: {error}") from error
        return log_mel[0], clip | {"duration_s": decoded.seconds}, cut

    @torch.inference_mode()
    def embed(self, log_mels: Sequence[Tensor]) -> list[np.ndarray]:
        """Raw log-mels [n_mels, frames] of any lengths to [V, D] float32 each: V is 1 for a clip, its columns for
        frames, and rows * columns for patches. Clips are computed with others of about their length."""
        found: list[np.ndarray] = [np.empty(0)] * len(log_mels)
        for batch in self._batches([log_mel.shape[-1] for log_mel in log_mels]):
            longest = log_mels[batch[-1]].shape[-1]
            padded = torch.stack([F.pad(log_mels[i], (0, longest - log_mels[i].shape[-1])) for i in batch])
            num_frames = torch.tensor([log_mels[i].shape[-1] for i in batch])
            tokens, valid = self.encoder.tokens(padded, num_frames, layers=self.settings.layers)  # [b, R, C, D]
            if self.settings.level == "clip":
                vectors = pool(tokens, valid, self.settings.pooling)[:, None].cpu().numpy()
                found_here = list(vectors)
            else:
                values = (tokens.mean(dim=1, keepdim=True) if self.settings.level == "frame" else tokens).cpu().numpy()
                width = values.shape[-1]
                counts = valid.sum(dim=1).tolist()
                found_here = [v[:, :n].reshape(-1, width) for v, n in zip(values, counts, strict=True)]
            for i, vectors in zip(batch, found_here, strict=True):
                found[i] = vectors
        return found

    def _batches(self, frames: Sequence[int]) -> Iterator[list[int]]:
        """Clips of similar length together, shortest first: padding is barred from attention, but costs time."""
        columns = [-(-n // PATCH) for n in frames]
        batch: list[int] = []
        for i in np.argsort(frames, kind="stable").tolist():
            most = self.batch_size or self.encoder.windows_at_once(columns[i])
            if batch and (len(batch) >= most or columns[i] > 1 + 1.25 * columns[batch[0]]):
                yield batch
                batch = []
            batch.append(i)
        yield batch

    def write_files(self, clips: pa.Table, index: int, output: str) -> ShardResult:
        """Decode and embed manifest rows into part `index` of `output`; the ok file appears last and marks it finished.

        Memory holds log-mels and embeddings of one row group, and as many log-mels decoded ahead.
        """
        manifest_rows = clips.to_pylist()
        with read_ahead(manifest_rows) as opener, self._part(index, output) as block:
            group: list[tuple[Tensor, dict[str, Any]]] = []
            frames = 0
            for clip, made in self._decoded(manifest_rows, opener):
                if isinstance(made, AudioError):
                    block.reject(clip, made)
                    continue
                log_mel, row, cut = made
                block.result.cut += cut
                group.append((log_mel, row))
                frames += log_mel.shape[-1]
                if len(group) == ROW_GROUP or frames >= GROUP_FRAMES:
                    self._write(block, *zip(*group, strict=True))
                    group, frames = [], 0
            if group:
                self._write(block, *zip(*group, strict=True))
        return block.result

    def write_shard(self, groups: RowGroups, shard: int, output: str) -> ShardResult:
        """Embed a shard's ok rows into the part of its number, row group by row group, digests checked."""
        with self._part(shard, output) as block:
            for group in groups.of_shard(shard):
                rows = groups.columns(group, MANIFEST_SCHEMA.names).to_pylist()
                read = groups.read(group)
                log_mels = [
                    torch.from_numpy(log_mel[:, :n].copy())
                    for log_mel, n in zip(read.log_mels, read.num_frames.tolist(), strict=True)
                ]
                self._write(block, log_mels, rows)
        return block.result

    def _part(self, index: int, output: str) -> Any:
        return block_output(part_path(output, OK, index), part_path(output, BAD, index), index, self.schema)

    def _decoded(
        self, clips: list[dict[str, Any]], opener: Opener
    ) -> Iterator[tuple[dict[str, Any], tuple[Tensor, dict[str, Any], bool] | AudioError]]:
        """Each clip with its log-mel or what is wrong with it, in order, made ahead by threads within AHEAD_FRAMES."""
        room, held, stopped = threading.Condition(), 0, False

        def work(clip: dict[str, Any]) -> tuple[Tensor, dict[str, Any], bool] | AudioError:
            nonlocal held
            with room:  # clips are started in order, so the one that is waited for never waits here
                room.wait_for(lambda: held < AHEAD_FRAMES or stopped)
            try:
                made = self.log_mel(clip, opener)
            except AudioError as error:
                return error
            with room:
                held += made[0].shape[-1]
            return made

        pool = ThreadPoolExecutor(self.threads)
        futures = deque((clip, pool.submit(work, clip)) for clip in clips)
        try:
            while futures:
                clip, future = futures.popleft()
                made = future.result()
                if not isinstance(made, AudioError):
                    with room:
                        held -= made[0].shape[-1]
                        room.notify_all()
                yield clip, made
        finally:
            with room:
                stopped = True
                room.notify_all()
            pool.shutdown(cancel_futures=True)

    def _write(self, block: BlockOutput, log_mels: Sequence[Tensor], rows: Sequence[dict[str, Any]]) -> None:
        """Add a row group; a clip whose embedding is not finite is a bad one."""
        kept: list[tuple[dict[str, Any], np.ndarray]] = []
        for row, vectors in zip(rows, self.embed(log_mels), strict=True):
            if np.isfinite(vectors).all():
                kept.append((row, vectors))
            else:
                block.reject(row, AudioError("encoder: the embedding is not finite"))
        if kept:
            block.write(self._table([row for row, _ in kept], [vectors for _, vectors in kept]))

    def _table(self, rows: list[dict[str, Any]], vectors: list[np.ndarray]) -> pa.Table:
        counts = [len(v) for v in vectors]
        flat = pa.array(np.concatenate(vectors).astype(np.float32, copy=False).reshape(-1))
        embedding: pa.Array = pa.FixedSizeListArray.from_arrays(flat, self.dimension)
        columns = pa.Table.from_pylist(rows, MANIFEST_SCHEMA).columns
        if self.settings.level != "clip":
            embedding = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), embedding)
        if self.settings.level == "frame":
            middle = self.encoder.first_ms
            columns.append(pa.array([middle + self.hop_ms * np.arange(n) for n in counts], pa.list_(pa.float32())))
        elif self.settings.level == "patch":
            bands = self.encoder.rows
            columns.append(pa.array([[bands, n // bands] for n in counts], pa.list_(pa.int32())))
        return pa.table([*columns, embedding], schema=self.schema)
