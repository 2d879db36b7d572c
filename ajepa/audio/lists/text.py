"""The text of a list, piece by piece: unpacked, checked to be UTF-8, never whole in memory."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

from ajepa import storage
from ajepa.errors import UserError

PIECE = 1 << 22  # bytes read at a time
LONGEST = 1 << 24  # bytes of a line, or of an object in JSON
EXPANSION = 200  # bytes unpacked from a byte; lists of equal lines reach 50
BELIEVED = 1 << 28  # bytes that are unpacked whatever they came from
BOM = codecs.BOM_UTF8
GZIP = b"\x1f\x8b"
OTHERS = {
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", b"\x89HDF": "HDF5", b"PAR1": "Parquet",
    b"PK\x03\x04": "a spreadsheet or an archive", b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}  # fmt: skip


def pieces(path: str) -> Iterator[bytes]:
    """The bytes of a text, without its byte order mark; a file compressed with gzip is unpacked.

    Raises:
        UserError: it is damaged, no text, or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    for piece in _unpacked(path):
        if not done:
            _require_text(piece, path)
            start = len(BOM) if piece.startswith(BOM) else 0
        held = len(decoder.getstate()[0])  # bytes of a character that the piece before began
        try:
            decoder.decode(piece)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error.reason, done - held + error.start) from error
        done += len(piece)
        yield piece[start:]
        start = 0
    if held := len(decoder.getstate()[0]):
        raise _not_utf8(path, "unexpected end of data", done - held)


def line_blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """(number of its first line, counted from 1; whole lines), some megabytes at a time.

    Raises:
        UserError: as `pieces`, or a line is too long to be one.
    """
    number, rest = 1, b""
    for piece in pieces(path):
        end = piece.rfind(b"\n") + 1
        if len(rest) + (end or len(piece)) > PIECE + LONGEST:
            raise UserError(f"line {number} of the manifest {path!r} has more than {LONGEST >> 20} MB: it is no list")
        if not end:
            rest += piece
            continue
        block = rest + piece[:end]
        yield number, block
        number += block.count(b"\n")
        rest = piece[end:]
    if rest:
        yield number, rest


def lines(path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its blanks at both ends) of the lines that are not empty."""
    for number, block in line_blocks(path):
        for offset, line in enumerate(block.decode().split("\n")):
            if line := line.strip():
                yield number + offset, line


def head(path: str) -> str:
    """The beginning of a text, up to some megabytes; "" where it is empty."""
    return next(pieces(path), b"").decode(errors="ignore")  # the last character may be cut


class TextStream(io.RawIOBase):
    """`pieces` as a file, for Arrow's readers."""

    def __init__(self, path: str) -> None:
        self._pieces = pieces(path)
        self._rest = memoryview(b"")
        self.has_quotes = False  # up to where it was read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            piece = next(self._pieces, b"")
            self.has_quotes |= b'"' in piece
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _unpacked(path: str) -> Iterator[bytes]:
    with storage.open_input(path) as stream:
        packed = stream.read(2) == GZIP
        stream.seek(0)
        if not packed:
            while piece := stream.read(PIECE):
                yield piece
            return
        size, done = stream.size(), 0
        with gzip.GzipFile(fileobj=stream, mode="rb") as unpacked:
            while piece := _next_unpacked(unpacked, path):
                done += len(piece)
                if done > max(BELIEVED, EXPANSION * size):
                    raise UserError(f"the manifest {path!r} unpacks to more than {EXPANSION} times its size: no list")
                yield piece


def _next_unpacked(unpacked: gzip.GzipFile, path: str) -> bytes:
    try:
        return unpacked.read(PIECE)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"the manifest {path!r} is a damaged gzip file ({error}): make or copy it again") from error


def _require_text(start: bytes, path: str) -> None:
    found = next((what for mark, what in OTHERS.items() if start.startswith(mark)), None)
    if found is None and b"\0" in start[:4096]:
        found = "no text"
    if found == "Parquet":
        raise UserError(f"the manifest {path!r} is Parquet under another name: name it .parquet")
    if found is not None:
        raise UserError(f"the manifest {path!r} is {found}: save it as a CSV in UTF-8, or as .parquet")


def _not_utf8(path: str, reason: str, position: int) -> UserError:
    return UserError(f"the manifest {path!r} is not UTF-8 ({reason} at byte {position}): save it as UTF-8")
