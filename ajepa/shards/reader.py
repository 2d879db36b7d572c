"""The training reader: an endless stream of random crops in which position k is a pure function of the seed.

Sample k of the run is the clip at position k % n of epoch k // n; step s takes samples [s*B, (s+1)*B). So every
clip comes once an epoch, nothing is dropped or repeated, the step number alone is an exact cursor, and the clips of
a step are the same whatever the number of ranks. A rank's share of every step lies in the same part of the row
groups in use, so the ranks together read the data about once.
"""

import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ajepa import counter_rng, storage
from ajepa.errors import UserError
from ajepa.shards.crops import BufferPool, fill_crop
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.kept_groups import KeptGroups
from ajepa.shards.order import EpochOrder, epoch_order, heldout_rows
from ajepa.shards.row_groups import PrefetchCache, RowGroup, RowGroups
from ajepa.shards.schema import ROW_GROUP
from ajepa.shards.shuffle_window import GROUPS_AHEAD, ShuffleWindow

CROP_STREAM = 1  # of counter_rng.uniform
FIXED_SAMPLES = 1 << 40  # samples from here on are crops of a fixed set, never reached by training
STATE_FORMAT = 1


@dataclass(frozen=True)
class Batch:
    """Clips of one rank's share of a step."""

    log_mel: np.ndarray  # [b, n_mels, crop_frames] float16, raw log-mels
    samples: np.ndarray  # [b] int64, positions in the run's stream of samples
    rows: np.ndarray  # [b] int64, rows of the dataset in storage order
    num_frames: np.ndarray | None = None  # [b] int64, valid frames of each crop; None: all, clips are repeated


class ShardReader:
    """Crops of `crop_frames` from a dataset. One reader a process: it holds threads and locks.

    Args:
        crop_frames: frames of a crop. A longer clip is cut at a random offset among its valid frames; a
            shorter one is repeated cyclically from a random start, so nothing trains on padding.
        batch_size: clips of a step over all ranks. Rank r takes [r * B // W, (r + 1) * B // W) of them.
        window: row groups in use at a time over all ranks (64 clips each): how well the order is mixed, and what
            memory it takes. A rank holds about window / world_size of them, twice that where an epoch begins.
        repeat: without it a clip shorter than a crop is not repeated: its padding stays, and `num_frames` tells.
        epoch_rows: the rows of an epoch in ascending order, always as many; a row may come several times. By default
            all rows that are not held out.
        holdout: clips that are never in the training stream: see `heldout_rows` and `crops_of`.
        verify: check each row against its digest the first time this reader reads it; from a store every time.
        threads: that read and check row groups for `batches` and `crops_of`, each with one in hand; by default 2, and
            16 for an object store, which answers late but many at a time.
        cache_bytes: a dataset that fits is kept in memory whole; of a larger one the row groups in use are, and where
            there is room, in a dataset of few, those that an epoch comes back to.

    Attributes:
        step: the next step, after the last batch that `batches` gave.
        num_clips: clips of an epoch, those held out apart.
        heldout_rows: int64 [holdout], rows in storage order.

    Raises:
        UserError: fewer clips in a batch than ranks, or more than half of the clips held out.
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
        repeat: bool = True,
        epoch_rows: Callable[[int], np.ndarray] | None = None,
        holdout: int = 0,
        verify: bool = True,
        threads: int | None = None,
        cache_bytes: int = 2 << 30,
    ) -> None:
        if batch_size < world_size:
            raise UserError(f"batch_size {batch_size} is less than a clip for each of {world_size} workers")
        if not 0 <= holdout <= dataset.num_clips // 2:
            raise UserError(f"holdout {holdout}: from 0 to half of the {dataset.num_clips} clips may be held out")
        self.dataset, self.crop_frames, self.seed, self.window = dataset, crop_frames, seed, window
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        late = not storage.is_local(dataset.path)
        self.threads = threads or (GROUPS_AHEAD if late else 2)
        self.step = 0
        self.heldout_rows = heldout_rows(seed, dataset.num_clips, holdout)
        everything = np.delete(np.arange(dataset.num_clips), self.heldout_rows)
        draw = epoch_rows or (lambda _: everything)
        self.num_clips = len(draw(0))
        self._window = ShuffleWindow(window, batch_size, self.num_clips, world_size, late)
        self._source = source = RowGroups(dataset, verify)

        # Without `self` in it: a cycle would keep the memory of a reader that is gone until the next collection.
        def order(epoch: int) -> EpochOrder:
            rows = draw(epoch)
            return epoch_order(seed, epoch, rows, source.group_of(rows), window)

        self._orders = PrefetchCache(order)
        self._groups: PrefetchCache[RowGroup] = PrefetchCache(self._source.read)
        self._used: dict[int, int] = {}  # call of `batch` that last asked for a row group
        self._calls = 0
        self._arrays, self._repeat = BufferPool((dataset.front_end.n_mels, crop_frames)), repeat
        row_bytes = 2 * dataset.front_end.n_mels * dataset.front_end.clip_frames
        self._keep_all = dataset.num_clips * row_bytes <= cache_bytes
        room = cache_bytes // (row_bytes * ROW_GROUP)
        self._kept = KeptGroups(self._window, rank, source.group_of, len(source.sizes), room)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, [num_clips], a permutation of those not held out: f(seed, epoch, row groups)."""
        return self._orders.get(epoch).rows

    def batch(self, step: int) -> Batch:
        """This rank's share of step `step`; row groups that are not in memory are read here.

        Raises:
            UserError: a shard that is missing or damaged.
            UnreachableError: the store did not answer.
        """
        return self._batch(step, step + 1, None)

    def batches(self, start: int, stop: int, prefetch: int = 2) -> Generator[Batch, None, None]:
        """Steps start..stop-1, `prefetch` of them ready ahead; `step` is the one after the batch in hand.

        Leaving early, or an error, ends the threads once the generator is closed. An error in them is raised here.
        """
        ready: queue.Queue[Batch | BaseException] = queue.Queue(prefetch)
        stopped = threading.Event()
        pool = ThreadPoolExecutor(self.threads, "shard-reader")

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
                    put(self._batch(step, stop, pool))
            except BaseException as error:  # raised by the caller, not lost
                put(error)

        thread = threading.Thread(target=produce, daemon=True, name="shard-reader")
        thread.start()
        self.step = start
        try:
            for step in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                self.step = step + 1
                yield item
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            thread.join()

    def state_dict(self) -> dict[str, Any]:
        """The cursor and what the stream behind it depends on; plain integers and strings, for any number of ranks."""
        return {"format": STATE_FORMAT, "step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set `step` to that of a saved state; go on with `batches(reader.step, stop)`.

        Raises:
            UserError: the state belongs to another stream; the message names what differs.
        """
        if state.get("format") != STATE_FORMAT:
            raise UserError(f"reader state of format {state.get('format')}, this version reads {STATE_FORMAT}")
        here = self._identity()
        odd = [f"{name} is {here[name]}, was {state.get(name)}" for name in here if state.get(name) != here[name]]
        if odd:
            raise UserError(
                f"the reader's state is of another stream of clips: {'; '.join(odd)}. "
                "Go on with the same data and settings, or start a new run"
            )
        self.step = int(state["step"])

    def crops_of(self, rows: np.ndarray, crops: int = 1) -> Batch:
        """Fixed crops of given rows, `crops` of each one after another: the same in every call, run and rank with
        this seed. Their samples are those of no training step. Each clip's row group is read whole: keep the result.

        Raises:
            UserError, UnreachableError: as `batch`.
        """
        rows = np.repeat(np.asarray(rows, np.int64), crops)
        turn = np.arange(len(rows)) % crops
        samples = FIXED_SAMPLES + turn * self.dataset.num_clips + rows
        out = np.empty((len(rows), *self._arrays.shape), np.float16)
        offsets, groups = self._offsets(samples), self._source.group_of(rows)
        num_frames = self._num_frames(len(rows))

        def fill(group: int) -> None:
            which = np.flatnonzero(groups == group)
            self._fill(out, num_frames, which, group, self._row_group(group), rows, offsets)

        with ThreadPoolExecutor(self.threads, "shard-reader") as pool:
            list(pool.map(fill, np.unique(groups).tolist()))
        return Batch(out, samples, rows, num_frames)

    def clips_of(self, rows: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Whole clips of rows in ascending order, at most `count` at a time and of one row group: log_mels
        [b, n_mels, clip_frames] float16, num_frames [b].

        Raises:
            UserError, UnreachableError: as `batch`.
        """
        groups = self._source.group_of(rows)
        for group in np.unique(groups).tolist():
            content, local_rows = self._row_group(group), rows[groups == group] - self._source.first_row[group]
            for start in range(0, len(local_rows), count):
                part = local_rows[start : start + count]
                yield content.log_mels[part], content.num_frames[part].astype(np.int64)

    def clip_ids(self, rows: np.ndarray) -> list[str]:
        """The clip ids of rows, read from their shards.

        Raises:
            UserError, UnreachableError: as `batch`.
        """
        return self._source.clip_ids(np.asarray(rows, np.int64))

    def _row_group(self, group: int) -> RowGroup:
        """A row group, past those in use where the dataset is not kept: memory holds one for each who asks."""
        return self._groups.get(group) if self._keep_all else self._source.read(group)

    def _identity(self) -> dict[str, Any]:
        """What the clips and crops of a step depend on. The order depends on the shards, the content hash does not."""
        shards = ",".join(str(shard.rows) for shard in self.dataset.shards)
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "crop_frames": self.crop_frames,
            "window": self.window,
            "holdout": len(self.heldout_rows),
            "num_clips": self.dataset.num_clips,
            "content_hash": self.dataset.content_hash,
            "shard_sizes": hashlib.blake2b(shards.encode(), digest_size=8).hexdigest(),
        }

    def _share(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, samples) of this rank: its slice of the step's clips in order of their columns."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epochs, positions = np.divmod(samples, self.num_clips)
        parts = []
        for epoch in np.unique(epochs):
            order, where = self._orders.get(int(epoch)), positions[epochs == epoch]
            parts.append((order.rows[where], order.columns[where]))
        rows, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
        by_column = np.argsort(columns, kind="stable")
        first, last = (r * self.batch_size // self.world_size for r in (self.rank, self.rank + 1))
        return rows[by_column[first:last]], samples[by_column[first:last]]

    def _batch(self, step: int, stop: int, pool: Executor | None) -> Batch:
        """Step `step`; with a pool the row groups of the next steps below `stop` are asked for as well."""
        if pool is not None:
            self._read_ahead(step, stop, pool)
        rows, samples = self._share(step)
        out = self._arrays.take(len(rows))
        offsets, groups = self._offsets(samples), self._source.group_of(rows)
        num_frames = self._num_frames(len(rows))
        for group in np.unique(groups).tolist():
            self._used[group] = self._calls
            content = self._groups.get(group)
            self._fill(out, num_frames, np.flatnonzero(groups == group), group, content, rows, offsets)
        self._drop(step)
        return Batch(out, samples, rows, num_frames)

    def _read_ahead(self, step: int, stop: int, pool: Executor) -> None:
        window = self._window
        epoch, begin = window.next_epoch(step)
        if begin < stop:
            self._orders.request(epoch, pool)
        groups = self._groups_of(range(step, min(step + window.steps_ahead + 1, stop)))
        if begin < stop and begin - step < window.steps:
            first = self._groups_of(range(begin, min(begin + window.opening_steps, stop)))
            groups += first[: window.opened(step, begin, len(first))]
        for group in groups:
            self._used[group] = self._calls
            self._groups.request(group, pool)

    def _groups_of(self, steps: range) -> list[int]:
        """The row groups of this rank's shares of some steps, those of the first ones first."""
        groups = [self._source.group_of(self._share(step)[0]).tolist() for step in steps]
        return list(dict.fromkeys(itertools.chain.from_iterable(groups)))

    def _drop(self, step: int) -> None:
        """Drop orders of other epochs, and row groups that are no longer used."""
        self._calls += 1
        first, last = self._window.epochs(step)
        self._orders.drop(lambda key: not first <= key <= last + 1)
        if not self._keep_all:
            oldest = self._calls - 1 - self._window.calls_kept
            self._used = {group: call for group, call in self._used.items() if call >= oldest}
            again = self._kept.needed_again(step + 1, self._orders.get, self._groups, self._used)
            self._groups.drop(lambda key: key not in self._used and key not in again)

    def _offsets(self, samples: np.ndarray) -> np.ndarray:
        """Where in its clip each crop begins, in [0, 1) of what is possible."""
        return counter_rng.uniform(self.seed, CROP_STREAM, samples, 1)[:, 0]

    def _num_frames(self, count: int) -> np.ndarray | None:
        return None if self._repeat else np.empty(count, np.int64)

    def _fill(
        self,
        out: np.ndarray,
        num_frames: np.ndarray | None,
        which: np.ndarray,
        group: int,
        content: RowGroup,
        rows: np.ndarray,
        offsets: np.ndarray,
    ) -> None:
        """Crop the clips `which` of a batch, all of one row group, into `out` and `num_frames`."""
        local_rows = rows[which] - self._source.first_row[group]
        for i, k, valid in zip(
            which.tolist(), local_rows.tolist(), content.num_frames[local_rows].tolist(), strict=True
        ):
            frames = fill_crop(content.log_mels[k], valid, float(offsets[i]), self._repeat, out[i])
            if num_frames is not None:
                num_frames[i] = frames
