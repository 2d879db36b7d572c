"""The training reader: an endless stream of random crops in which position k is a pure function of the seed.

Sample k of the run is row k % n of epoch k // n; step s takes samples [s*B, (s+1)*B) and rank r its slice of
them. So every clip comes once an epoch, nothing is dropped or repeated, the step number alone is an exact
cursor, and a batch is the same whatever the number of ranks.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from ajepa import rng, storage
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.schema import ROW_GROUP, decode_log_mels

CROP_STREAM = 1  # of rng.uniform
CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class Batch:
    """Clips of one rank's share of a step."""

    log_mel: np.ndarray  # [b, n_mels, crop_frames] float16, raw log-mels
    samples: np.ndarray  # [b] int64, positions in the run's stream of samples
    rows: np.ndarray  # [b] int64, rows of the dataset in storage order


class ShardReader:
    """Crops of `crop_frames` from a dataset.

    Args:
        crop_frames: frames of a crop. A longer clip is cut at a random offset among its valid frames; a
            shorter one is repeated cyclically from a random start, so nothing trains on padding.
        window: row groups shuffled together (64 clips each). The order is random over row groups and random
            within a window of them.

    Raises:
        UserError: the batch does not divide over the ranks.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        crop_frames: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 64,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"batch_size {batch_size} does not divide over {world_size} workers")
        self.dataset, self.crop_frames, self.seed, self.window = dataset, crop_frames, seed, window
        self.batch_size, self.rank, self.local_batch = batch_size, rank, batch_size // world_size
        self.num_clips = dataset.num_clips
        groups = [
            (shard, start, min(ROW_GROUP, shard.rows - start))
            for shard in dataset.shards
            for start in range(0, shard.rows, ROW_GROUP)
        ]
        self._groups = groups
        self._first_row = np.cumsum([0, *(rows for _, _, rows in groups)])
        row_bytes = 2 * dataset.front_end.n_mels * dataset.front_end.clip_frames
        self._capacity = max(2 * window + 2, CACHE_BYTES // (row_bytes * ROW_GROUP))
        self._cache: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, a permutation [num_clips] of storage order: f(seed, epoch) only."""
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            groups = generator.permutation(len(self._groups))
            parts = []
            for i in range(0, len(groups), self.window):
                ranges = [np.arange(self._first_row[g], self._first_row[g + 1]) for g in groups[i : i + self.window]]
                parts.append(generator.permutation(np.concatenate(ranges)))
            self._orders[epoch] = np.concatenate(parts)
            while len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def batch(self, step: int) -> Batch:
        """This rank's share of step `step`."""
        first = step * self.batch_size + self.rank * self.local_batch
        samples = np.arange(first, first + self.local_batch, dtype=np.int64)
        epochs, positions = np.divmod(samples, self.num_clips)
        rows = np.concatenate([self.epoch_order(int(e))[positions[epochs == e]] for e in np.unique(epochs)])
        places = rng.uniform(self.seed, CROP_STREAM, samples, 1)[:, 0]
        out = np.empty((len(rows), self.dataset.front_end.n_mels, self.crop_frames), np.float16)
        groups = np.searchsorted(self._first_row, rows, side="right") - 1
        for i, (row, group, place) in enumerate(zip(rows, groups, places, strict=True)):
            log_mels, num_frames = self._group(int(group))
            inner = row - self._first_row[group]
            _crop(log_mels[inner], int(num_frames[inner]), place, out[i])
        return Batch(out, samples, rows)

    def batches(self, start: int, stop: int, prefetch: int = 2) -> Iterator[Batch]:
        """Steps start..stop-1, read ahead by a thread. An error in the thread is raised here."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        stopped = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(start, stop):
                    if stopped.is_set():
                        return
                    put(self.batch(step))
            except BaseException as error:  # handed over, not swallowed
                put(error)

        thread = threading.Thread(target=produce, daemon=True, name="shard-reader")
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        shard, start, rows = self._groups[group]
        front_end = self.dataset.front_end
        with storage.open_input(storage.join(self.dataset.path, shard.name)) as stream:
            table = pq.ParquetFile(stream).read_row_group(start // ROW_GROUP, columns=["log_mel", "num_frames"])
        log_mels = decode_log_mels(table["log_mel"], front_end.n_mels, front_end.clip_frames)
        if len(log_mels) != rows:
            raise RuntimeError(f"{shard.name}: row group {start // ROW_GROUP} has {len(log_mels)} rows, not {rows}")
        self._cache[group] = log_mels, table["num_frames"].to_numpy()
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return self._cache[group]


def _crop(log_mel: np.ndarray, valid: int, place: float, out: np.ndarray) -> None:
    """Fill out [n_mels, crop] from the valid frames of one clip; `place` in [0, 1) chooses where."""
    crop = out.shape[1]
    if valid >= crop:
        start = int(place * (valid - crop + 1))
        out[:] = log_mel[:, start : start + crop]
    else:
        out[:] = log_mel[:, (int(place * valid) + np.arange(crop)) % valid]
