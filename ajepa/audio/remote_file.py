"""Inputs for decoders: plain local files, and objects of a store, read a megabyte at a time."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ajepa import storage

READ_AHEAD = 1 << 20  # bytes asked of an object store at a time


class RemoteFile(io.RawIOBase):
    """A file of a store for decoders written in C. They could not hand on an exception of their callback and would
    only print it, so a read that fails is the end of the file, and the reason is kept in `error`."""

    def __init__(self, path: str) -> None:
        self._file = storage.open_input(path)
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.error is not None:
            return 0
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # raised where the block of `decoder_input` ends
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()


@contextlib.contextmanager
def decoder_input(path: str) -> Iterator[Any]:
    """An input for decoders: a plain file where there is one (libsndfile then reads by its descriptor), else a
    buffered remote one, whose read errors come out of the block whatever the decoder made of them."""
    if storage.is_local(path):
        with Path(storage.absolute(path)).open("rb", buffering=0) as file:
            yield file
        return
    remote = RemoteFile(path)
    try:
        yield io.BufferedReader(remote, READ_AHEAD)
    except Exception:
        if remote.error is None:
            raise
    if remote.error is not None:
        raise remote.error


def read_failed(stream: Any) -> bool:
    """Whether a stream that `decoder_input` gave, or one made of it, ended because its store failed."""
    while stream is not None and not isinstance(stream, RemoteFile):
        stream = getattr(stream, "raw", None)
    return stream is not None and stream.error is not None
