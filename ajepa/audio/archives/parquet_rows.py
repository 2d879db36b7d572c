"""Sound in the rows of Parquet files: each row group is read once, in order, by a thread that stays a little ahead."""

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.errors import AudioError
from ajepa.audio.remote_file import decoder_input
from ajepa.audio.streams import View
from ajepa.errors import one_line

AHEAD = 64 << 20  # bytes of sound that are held for later
BATCH = 2 << 20  # bytes of sound decoded from Parquet at a time
WHOLE = 128 << 20  # a row group's sound up to this size is read in one piece, a larger one through a buffer
BUFFER = 4 << 20


class Row(NamedTuple):
    """Where a row lies."""

    uri: str
    group: int
    row: int


class Sound(NamedTuple):
    """What stands there; either may be missing."""

    content: pa.Buffer | None
    path: str | None

    @property
    def size(self) -> int:
        """Bytes."""
        return 0 if self.content is None else int(self.content.size)


class ParquetRows:
    """Reads rows whose locator names the column: binary, or a struct of `bytes` and `path`. Memory holds AHEAD and what
    Arrow needs for a batch; where a page of the file is larger than that, the page."""

    def __init__(self, clips: Sequence[Mapping[str, Any]]) -> None:
        rows = [_row(clip) for clip in clips]
        self._uses = Counter(rows)  # that are still to come
        self._last = {row[:2]: row.row for row in sorted(rows)}  # of each row group: nothing behind it is read
        self._columns = {row[:2]: clip["locator"]["name"] for row, clip in zip(rows, clips, strict=True)}
        self._found: dict[Row, Sound] = {}
        self._failed: dict[tuple[str, int], Exception] = {}
        self._done: set[tuple[str, int]] = set()  # row groups
        self._held = 0  # bytes
        self._awaited: list[Row] = []
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read_all, name="parquet-rows", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def open(self, clip: Mapping[str, Any]) -> Iterator[Any]:
        row = _row(clip)
        found = self._wait_for(row)
        try:
            if found.content is not None:
                yield View(found.content)
            elif found.path:
                with decoder_input(beside(row.uri, found.path)) as stream:
                    yield stream
            else:
                raise AudioError(f"read: row {row.row} of row group {row.group} has neither bytes nor a path")
        finally:
            self.used(clip)

    def used(self, clip: Mapping[str, Any]) -> None:
        row = _row(clip)
        with self._changed:
            self._uses[row] -= 1
            if self._uses[row] <= 0:
                self._drop(row)

    def close(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        # A thread inside Arrow when the interpreter ends aborts the process. A store that is away is not awaited.
        self._thread.join(1.0)

    def _wait_for(self, row: Row) -> Sound:
        group = row[:2]
        with self._changed:
            self._awaited.append(row)
            self._changed.notify_all()
            self._changed.wait_for(lambda: row in self._found or group in self._done or self._stopped.is_set())
            self._awaited.remove(row)
            if row in self._found:
                return self._found[row]
            error = self._failed.get(group)
        if isinstance(error, storage.UnreachableError | FileNotFoundError | PermissionError):
            raise error
        if error is not None:
            raise AudioError(f"read: row group {row.group} of the Parquet file: {one_line(error)[:200]}") from error
        # It was used before: a decoder reads again what a store did not give it.
        for at, sound in self._rows(group, row.row):
            if at == row.row:
                return sound
        raise AudioError(f"read: row group {row.group} has no row {row.row}")

    def _is_awaited(self) -> bool:
        return any(row not in self._found for row in self._awaited)

    def _drop(self, row: Row) -> None:
        sound = self._found.pop(row, None)
        if sound is not None:
            self._held -= sound.size
            self._changed.notify_all()

    def _read_all(self) -> None:
        for group in self._columns:
            if self._stopped.is_set():
                return
            try:
                storage.with_retries(group[0], functools.partial(self._read_group, group), self._stopped)
            except Exception as error:  # of the store or the file: raised for each clip of the group
                self._failed[group] = error
            with self._changed:
                self._done.add(group)
                self._changed.notify_all()

    def _read_group(self, group: tuple[str, int]) -> None:
        for at, sound in self._rows(group, self._last[group]):
            row = Row(*group, at)
            with self._changed:
                # Whoever waits for a row that is still to come must not wait for room.
                self._changed.wait_for(lambda: self._held < AHEAD or self._is_awaited() or self._stopped.is_set())
                if self._stopped.is_set():
                    return
                if self._uses[row] > 0 and row not in self._found:
                    self._found[row] = sound
                    self._held += sound.size
                    self._changed.notify_all()

    def _rows(self, group: tuple[str, int], last: int) -> Iterator[tuple[int, Sound]]:
        """Number and sound of each row of a row group, up to the last that is wanted."""
        uri, number = group
        column = self._columns[group]
        with storage.open_input(uri) as stream:
            about = pq.read_metadata(stream).row_group(number)
            chunks = [about.column(i) for i in range(about.num_columns)]
            chunks = [chunk for chunk in chunks if _is_of(chunk.path_in_schema, column)]
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            rows = max(1, min(about.num_rows, about.num_rows * BATCH // max(1, size)))
            parquet = pq.ParquetFile(stream, buffer_size=0 if size <= WHOLE else BUFFER, pre_buffer=False)
            names = [chunk.path_in_schema for chunk in chunks]
            at = 0
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names, use_threads=False):
                yield from enumerate(_sounds(batch.column(0)), at)
                at += batch.num_rows
                if at > last:
                    return


def _row(clip: Mapping[str, Any]) -> Row:
    return Row(clip["uri"], clip["locator"]["row_group"], clip["locator"]["row"])


def _is_of(leaf: str, column: str) -> bool:
    """Whether a leaf of the schema is a column that holds sound, or its bytes or path."""
    return leaf in (column, f"{column}.bytes", f"{column}.path")


def _sounds(values: pa.Array) -> Iterator[Sound]:
    """The rows of a column, not copied: a row keeps its batch in memory."""
    if not pa.types.is_struct(values.type):
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        yield from (Sound(None, v.as_py()) if is_text else Sound(v.as_buffer(), None) for v in values)
        return
    fields = {field.name for field in values.type}
    content = values.field("bytes") if "bytes" in fields else pa.nulls(len(values), pa.binary())
    paths = values.field("path") if "path" in fields else pa.nulls(len(values), pa.string())
    valid = values.is_valid()
    for is_there, data, path in zip(valid, content, paths, strict=True):
        yield Sound(data.as_buffer(), path.as_py()) if is_there.as_py() else Sound(None, None)


def beside(uri: str, path: str) -> str:
    """A path that stands in a file: relative ones start at the file's folder."""
    if storage.is_uri(path) or path.startswith("/"):
        return path
    return storage.join(uri.rpartition("/")[0], path)
