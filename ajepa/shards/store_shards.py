"""Shards in an object store: the footer of each asked for once, then one request for the columns of a row group.

An open file of a store is no connection: it holds the name and the size of the object, so a shard is opened once.
"""

import io
import threading
import zlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage

OPEN_SHARDS = 10_000  # kept with their footers, 3 KB each
FIRST_TAIL = 64 << 10  # bytes of the end of a file that are asked for: the footer of 500 clips has 12 KB
END = b"PAR1"


class Piece(io.RawIOBase):
    """Some bytes of a file in memory, read as if they lay in the whole of it.

    Args:
        start: of the piece in the file.
        size: of the file, in bytes.
    """

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._place = memoryview(data), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> Any:
        """A view, not a copy; nothing outside the piece."""
        first = self._place - self._start
        last = len(self._data) if size < 0 else min(first + size, len(self._data))
        found = self._data[first:last] if 0 <= first < last else self._data[:0]
        self._place += len(found)
        return found


@dataclass(frozen=True)
class OpenShard:
    """A shard that was opened: its file, and the end of it with the footer, compressed."""

    file: pa.NativeFile
    size: int  # bytes
    tail: bytes

    def footer(self) -> pq.FileMetaData:
        """Raises pa.ArrowException where it is damaged, never an OSError: that would be the store's."""
        try:
            return pq.read_metadata(pa.BufferReader(zlib.decompress(self.tail)))
        except OSError as error:
            raise pa.ArrowInvalid(str(error)) from error


class StoreShards:
    """The shards of a dataset in a store, by path. Threads may read at the same time."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str) -> OpenShard:
        """Raises OSError where the store does not answer or has no such object, pa.ArrowInvalid for one that is no
        Parquet file."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
                return found
        filesystem, inner = storage.resolve(path)
        file = filesystem.open_input_file(inner)
        size = file.size()
        made = OpenShard(file, size, zlib.compress(_tail(file, size), 1))
        with self._lock:
            self._open[path] = made
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return made

    def forget(self, path: str) -> None:
        """Open it anew the next time: it may be another one by then."""
        with self._lock:
            self._open.pop(path, None)

    def read(self, shard: OpenShard, footer: pq.FileMetaData, index: int, columns: Collection[str]) -> Piece:
        """What of the file lies from the first to the last of these columns of a row group, in one request.

        Raises:
            OSError: the store does not answer.
            pa.ArrowInvalid: the footer names no such place.
        """
        start, stop = _place(footer.row_group(index), columns)
        if not 0 <= start < stop <= shard.size:
            raise pa.ArrowInvalid(f"row group {index} lies at {start} to {stop} of {shard.size} bytes")
        return Piece(shard.file.read_at(stop - start, start), start, shard.size)


def _tail(file: pa.NativeFile, size: int) -> bytes:
    """The end of a Parquet file: its footer, the length of that, and the closing mark."""
    tail = file.read_at(min(size, FIRST_TAIL), max(0, size - FIRST_TAIL))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != END or length > size:
        raise pa.ArrowInvalid("no Parquet file: it does not end with a footer")
    if length > len(tail):
        tail = file.read_at(length, size - length)
    return bytes(tail[-length:])


def _place(group: pq.RowGroupMetaData, columns: Collection[str]) -> tuple[int, int]:
    """(first byte, byte after the last) of columns of a row group; (0, 0) where it has none of them."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    places = [
        (chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns
    ]
    return min((start for start, _ in places), default=0), max((start + size for start, size in places), default=0)
