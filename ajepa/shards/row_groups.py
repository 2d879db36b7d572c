"""Row groups of a dataset: read one whole, check it against its digests the first time, name its clips.

Files are read, not mapped: a file that is cut while it is mapped ends the process instead of raising an error.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.files import cannot_be_read, damaged_shard, naming_damage, read_parquet
from ajepa.shards.schema import LOCATED, ROW_GROUP, decode_log_mels
from ajepa.shards.store_shards import Piece, StoreShards

V = TypeVar("V")
FOOTERS = 256  # parsed footers of local shards kept, 0.1 MB each


@dataclass(frozen=True)
class RowGroup:
    """Clips of one row group."""

    log_mels: np.ndarray  # [rows, n_mels, clip_frames] float16, read only
    num_frames: np.ndarray  # [rows] int32, valid frames


class RowGroups:
    """The row groups of a dataset by number, in storage order. Threads may read at the same time.

    Raises:
        UserError: the shards of dataset.json do not add up to its clips.
    """

    def __init__(self, dataset: ShardDataset, verify: bool = True) -> None:
        self._dataset = dataset
        sizes = np.array([shard.rows for shard in dataset.shards], np.int64)
        counts = -(-sizes // ROW_GROUP)
        self._shard = np.repeat(np.arange(len(sizes)), counts)
        self._index = np.arange(len(self._shard)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its shard
        self.sizes = np.minimum(ROW_GROUP, sizes[self._shard] - self._index * ROW_GROUP)
        self.first_row = np.cumsum([0, *self.sizes])
        if self.first_row[-1] != dataset.num_clips:
            raise UserError(
                f"{dataset.path}: dataset.json has shards of {self.first_row[-1]} rows for {dataset.num_clips} clips. "
                "Restore it, then run the same command again"
            )
        self._verified = np.full(len(self.sizes), not verify)
        self._store = StoreShards()
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_row, rows, side="right") - 1

    def read(self, group: int) -> RowGroup:
        """Read a row group, and check each row against its digest if this is the first time, or from a store.

        Raises:
            UserError: a shard that is missing or damaged, by its name and, where known, row and clip.
            UnreachableError: the store did not answer.
        """
        verify = not self._verified[group]
        table = self.columns(group, ["log_mel", "num_frames", *(["digest", "clip_id"] if verify else [])])
        front_end = self._dataset.front_end
        try:
            log_mels = decode_log_mels(table["log_mel"], front_end.n_mels, front_end.clip_frames)
        except ValueError as error:
            raise self._damaged(group, str(error)) from error
        num_frames = table["num_frames"].to_numpy()
        if verify:
            self._check(group, log_mels, num_frames, table)
            # Where a store sends less than it was asked for, pyarrow leaves memory as it was, and says nothing.
            self._verified[group] = storage.is_local(self._dataset.path)
        return RowGroup(log_mels, num_frames)

    def clip_ids(self, rows: np.ndarray) -> list[str]:
        """The clip ids of rows, read from their shards.

        Raises:
            UserError, UnreachableError: as `read`.
        """
        groups = self.group_of(rows)
        ids = {int(g): self.columns(int(g), ["clip_id"])["clip_id"] for g in np.unique(groups)}
        return [ids[int(g)][int(row - self.first_row[g])].as_py() for row, g in zip(rows, groups, strict=True)]

    def of_shard(self, shard: int) -> list[int]:
        """The row groups of a shard, in storage order."""
        return np.flatnonzero(self._shard == shard).tolist()

    def columns(self, group: int, columns: list[str]) -> pa.Table:
        """Columns of a row group, none with a value missing but `locator`, which older shards do not have.

        Raises:
            UserError, UnreachableError: as `read`.
        """
        path = self._path(group)
        if storage.is_local(path):
            return read_parquet(
                path, lambda stream: self._parse(group, stream, columns), lambda what: self._damaged(group, what)
            )
        return self._from_store(group, path, columns)

    def _parse(self, group: int, stream: pa.NativeFile, columns: list[str]) -> pa.Table:
        shard = int(self._shard[group])
        with self._lock:
            footer = self._footers.get(shard)
        parquet = pq.ParquetFile(stream, metadata=footer, pre_buffer=False)
        if footer is None:
            footer = parquet.metadata
            with self._lock:
                self._footers[shard] = footer
                if len(self._footers) > FOOTERS:
                    self._footers.popitem(last=False)
        self._require_layout(group, footer)
        return self._take(group, parquet, columns)

    def _from_store(self, group: int, path: str, columns: list[str]) -> pa.Table:
        """What is asked of the store is asked again if it does not answer; what it sent is parsed once."""

        def ask() -> tuple[pq.FileMetaData, Piece]:
            try:
                shard = self._store.open(path)
                footer = shard.footer()
                self._require_layout(group, footer)
                return footer, self._store.read(shard, footer, int(self._index[group]), columns)
            except BaseException:
                self._store.forget(path)
                raise

        footer, piece = naming_damage(path, ask, lambda what: self._damaged(group, what))
        try:
            return self._take(group, pq.ParquetFile(piece, metadata=footer, pre_buffer=False), columns)
        except (OSError, pa.ArrowException, KeyError) as error:
            self._store.forget(path)
            raise self._damaged(group, cannot_be_read(error)) from error

    def _require_layout(self, group: int, footer: pq.FileMetaData) -> None:
        """Refuse a shard that has not the rows that dataset.json says, or not in such row groups."""
        rows, size, index = self._dataset.shards[self._shard[group]].rows, self.sizes[group], int(self._index[group])
        if footer.num_rows != rows:
            raise self._damaged(group, f"{footer.num_rows} rows, dataset.json says {rows}")
        found = footer.row_group(index).num_rows if index < footer.num_row_groups else 0
        if found != size:
            raise self._damaged(group, f"row group {index} has {found} rows, not {size}")

    def _take(self, group: int, parquet: pq.ParquetFile, columns: list[str]) -> pa.Table:
        index = int(self._index[group])
        table = parquet.read_row_group(index, columns=columns, use_threads=False)
        if len(table) != self.sizes[group] or any(table[name].null_count for name in columns if name != LOCATED):
            raise self._damaged(group, f"row group {index} has values missing")
        return table

    def _check(self, group: int, log_mels: np.ndarray, num_frames: np.ndarray, table: pa.Table) -> None:
        first, frames = int(self._index[group]) * ROW_GROUP, self._dataset.front_end.clip_frames
        raw = log_mels.reshape(len(log_mels), -1).view(np.uint8)
        # As bytes: damaged text may not be UTF-8.
        digests, clip_ids = (table[name].cast(pa.binary()).to_pylist() for name in ("digest", "clip_id"))
        for i, (row, digest, clip_id) in enumerate(zip(raw, digests, clip_ids, strict=True)):
            where = f"row {first + i}, clip {clip_id.decode(errors='replace')!r}"
            if hashlib.blake2b(row.data, digest_size=16).hexdigest().encode() != digest:
                raise self._damaged(group, f"{where}: log_mel does not match its digest")
            if not 0 < num_frames[i] <= frames:
                raise self._damaged(group, f"{where}: {num_frames[i]} valid frames of {frames}")

    def _path(self, group: int) -> str:
        return storage.join(self._dataset.path, self._dataset.shards[self._shard[group]].name)

    def _damaged(self, group: int, what: str) -> UserError:
        return damaged_shard(self._dataset.path, self._dataset.shards[self._shard[group]].name, what)


class PrefetchCache(Generic[V]):
    """Values by number, made when they are asked for or ahead of that by a pool, and held until they are dropped."""

    def __init__(self, make: Callable[[int], V]) -> None:
        self._make = make
        self._held: dict[int, Future[V]] = {}

    def request(self, key: int, pool: Executor) -> None:
        if self._lacks(key):
            self._held[key] = pool.submit(self._make, key)

    def get(self, key: int) -> V:
        if self._lacks(key):
            made: Future[V] = Future()
            made.set_result(self._make(key))
            self._held[key] = made
        try:
            return self._held[key].result()
        except BaseException:
            self._held.pop(key, None)  # the next one who asks tries again
            raise

    def _lacks(self, key: int) -> bool:
        held = self._held.get(key)
        return held is None or held.cancelled()  # by a pool that was shut down

    def drop(self, unwanted: Callable[[int], bool]) -> None:
        for key in [key for key in self._held if unwanted(key)]:
            self._held.pop(key, None)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._held))
