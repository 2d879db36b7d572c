"""Byte streams as decoders need them: full reads, sizes, and a view of a part whose header is corrected."""

import io
from typing import Any, NamedTuple

import numpy as np


class Samples(NamedTuple):
    """Sound that is stored without a container."""

    waveform: np.ndarray  # [samples] float32, mono
    rate: int  # in Hz


def read_up_to(stream: Any, count: int) -> bytes:
    """So many bytes, or all there are: a raw stream may give fewer at a time."""
    parts = []
    while count > 0 and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_at(stream: Any, at: int, count: int) -> bytes:
    """`read_up_to` from an offset on."""
    stream.seek(at)
    return read_up_to(stream, count)


def size_of(stream: Any) -> int:
    return int(stream.seek(0, io.SEEK_END))


class Patched(io.RawIOBase):
    """A stream from an offset on, with some bytes of its header replaced; the offsets of those count from there."""

    def __init__(self, stream: Any, start: int, patches: tuple[tuple[int, bytes], ...]) -> None:
        self._stream, self._start, self._patches = stream, start, patches
        stream.seek(start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            offset += self._start
        return int(self._stream.seek(offset, whence)) - self._start

    def tell(self) -> int:
        return int(self._stream.tell()) - self._start

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        data = bytearray(self._stream.read(len(buffer)))
        for offset, patch in self._patches:
            for i, byte in enumerate(patch, offset - start):
                if 0 <= i < len(data):
                    data[i] = byte
        buffer[: len(data)] = data
        return len(data)


class View(io.RawIOBase):
    """A buffer as a stream, without a copy of it."""

    def __init__(self, buffer: Any) -> None:
        self._view, self._at = memoryview(buffer), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = len(self._view) if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : stop])
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        part = self._view[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


class Window(io.RawIOBase):
    """A part of a seekable stream as a stream of its own."""

    def __init__(self, stream: Any, start: int, size: int) -> None:
        self.raw = self._stream = stream
        self._start, self._size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = read_at(self._stream, self._start + self._at, count) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
