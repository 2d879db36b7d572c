"""Clips in, one finished part out: what every model that is run over clips has in common. A part is a pure function of
its clips, the model and its settings: written again, by any worker, it holds the same rows."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from ajepa.config import PATCH
from ajepa.inference.encoder import AudioEncoder
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.schema import BAD, OK, ROW_GROUP
from ajepa.shards.writer import BlockOutput, ShardResult, block_output

# Frames of log-mel (at 256 bytes) in a row group of a part, beyond one clip: a bound where clips are long.
GROUP_FRAMES = ROW_GROUP * 3_000
AHEAD_FRAMES = GROUP_FRAMES  # decoded and not yet taken
MAX_SECONDS = 600.0  # of a clip, where nothing else is said; longer ones are cut


def part_path(output: str, status: str, index: int) -> str:
    return storage.join(output, status, f"part-{index:05d}.parquet")


class PartWriter(ABC):
    """Files and shards to parts: log-mels through `compute`, and with their manifest rows through `table`.

    Args:
        encoder: whose front end makes the log-mels.
        max_seconds: of a clip; longer ones are cut.
        batch_size: clips computed at a time; by default as many as the device is busy with.
        threads: that read, decode and make log-mels beside the model.
    """

    schema: pa.Schema  # of the ok rows
    not_finite: str  # why a clip is bad whose values are not finite, "stage: reason"

    def __init__(
        self, encoder: AudioEncoder, max_seconds: float, *, batch_size: int | None = None, threads: int = 1
    ) -> None:
        self.encoder, self.max_seconds, self.batch_size, self.threads = encoder, max_seconds, batch_size, threads

    @abstractmethod
    def compute(self, log_mels: Sequence[Tensor]) -> list[np.ndarray]:
        """Raw log-mels [n_mels, frames] of any lengths to float32 values each, [V, D]."""

    @abstractmethod
    def table(self, rows: list[dict[str, Any]], frames: list[int], values: list[np.ndarray]) -> pa.Table:
        """Rows of the schema, of manifest rows, the frames of their log-mels and what `compute` found."""

    def log_mel(self, clip: dict[str, Any], opener: Opener = open_clip) -> tuple[Tensor, dict[str, Any], bool]:
        """A manifest row's log-mel [n_mels, frames], the row with the duration that was read, and whether it was cut.

        Raises:
            AudioError: the clip is bad.
        """
        rate = self.encoder.sample_rate
        decoded, cut = decode_clip(clip, rate, round(self.max_seconds * rate), opener)
        try:
            log_mel, _ = self.encoder.log_mels(decoded.waveform, rate)
        except ValueError as error:
            raise AudioError(f"waveform: {error}") from error
        return log_mel[0], clip | {"duration_s": decoded.seconds}, cut

    def batches(self, log_mels: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(numbers, [b, n_mels, T] padded, [b] valid frames) of log-mels of similar length, shortest first: padding is
        barred from attention, but costs time."""
        for batch in self._batches([log_mel.shape[-1] for log_mel in log_mels]):
            longest = log_mels[batch[-1]].shape[-1]
            padded = torch.stack([F.pad(log_mels[i], (0, longest - log_mels[i].shape[-1])) for i in batch])
            yield batch, padded, torch.tensor([log_mels[i].shape[-1] for i in batch])

    def _batches(self, frames: Sequence[int]) -> Iterator[list[int]]:
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
        """Decode and compute manifest rows into part `index` of `output`; its ok file appears last and marks the end.

        Memory holds log-mels and values of one row group, and as many log-mels decoded ahead.
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
        """Compute a shard's ok rows into the part of its number, row group by row group, digests checked."""
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
        """Add a row group; a clip whose values are not finite is a bad one."""
        kept: list[tuple[dict[str, Any], int, np.ndarray]] = []
        for row, log_mel, values in zip(rows, log_mels, self.compute(log_mels), strict=True):
            if np.isfinite(values).all():
                kept.append((row, log_mel.shape[-1], values))
            else:
                block.reject(row, AudioError(self.not_finite))
        if kept:
            block.write(self.table([r for r, _, _ in kept], [n for _, n, _ in kept], [v for _, _, v in kept]))
