"""Files of chunks, WAV, RF64 (EBU Tech 3306), AIFF and CAF: where their sound really ends."""

import struct
from dataclasses import dataclass
from typing import Any

from ajepa.audio import mpeg
from ajepa.audio.streams import read_at

UNKNOWN = 0xFFFF_FFFF
MOST_CHUNKS = 10_000  # of a file: each costs a read
PADDING = 1 << 16  # zero bytes after the sound that are taken for padding
# Chunks that may follow the sound, cut off by the end of the file or not.
AFTER = frozenset((
    b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl", b"PEAK", b"fact", b"iXML", b"JUNK", b"junk", b"PAD ", b"FLLR",
    b"inst", b"acid", b"DISP", b"cart", b"_PMX", b"axml", b"afsp", b"LGWV", b"plst", b"note", b"labl", b"adtl",
    b"COMM", b"MARK", b"INST", b"APPL", b"NAME", b"AUTH", b"ANNO", b"COMT", b"(c) ", b"AESD", b"MIDI", b"CHAN",
))  # fmt: skip
TAGS = (b"ID3", b"TAG", b"APETAGEX")


@dataclass(frozen=True)
class Header:
    """What is wrong with a header."""

    patches: tuple[tuple[int, bytes], ...] = ()  # corrections: offset from the start of the recording, bytes
    doubt: str = ""  # why libsndfile does not come to the end in spite of them
    refused: str = ""  # the file holds more than one recording


def inspect(stream: Any, start: int, size: int) -> Header:
    """What the header of the file from `start` to `size` should say, where it counts fewer bytes of sound than follow:
    programs write it first, and not again when they are stopped or write to a pipe."""
    at, sizes = start + 12, 0
    kind = read_at(stream, start, 4)
    order = ">" if kind == b"FORM" else "<"
    for _ in range(MOST_CHUNKS):
        if at + 8 > size:
            break
        name, length = struct.unpack(f"{order}4sI", read_at(stream, at, 8))
        if name == b"ds64" and kind == b"RF64":
            sizes = at + 8
        if name in (b"data", b"SSND"):
            return _sound(stream, start, at, sizes, length, size, order)
        at += 8 + length + length % 2
    return Header()


def _sound(stream: Any, start: int, at: int, sizes: int, length: int, size: int, order: str) -> Header:
    """Compare the length of the chunk at `at` with what follows it; `sizes` is where RF64 keeps its own, or 0."""
    begin = at + 8
    if sizes:
        length = struct.unpack("<Q", read_at(stream, sizes + 8, 8))[0]
    end = begin + length
    if end + 8 > size:
        return Header()
    follows = read_at(stream, end, PADDING)
    if _is_recording(stream, end, follows) or _is_recording(stream, end + 1, follows[1:]):
        return Header(refused=f"another recording follows {length:,} bytes of sound: make each a file of its own")
    padding = length and end + len(follows) == size and not follows.strip(b"\0")
    if padding or follows.startswith(TAGS):
        return Header()
    for place in (end, end + 1):
        names = _chunk_names(stream, place, size, order)
        if names is not None:
            again = f"another chunk of sound follows {length:,} bytes: make each a file of its own"
            return Header(refused=again) if names & {b"data", b"SSND"} else Header()
    if sizes:
        return Header(((sizes - start, struct.pack("<QQ", size - start - 8, size - begin)),))
    stated = (4, size - start - 8), (at + 4 - start, size - begin)
    patches = tuple((offset, struct.pack(f"{order}I", min(count, UNKNOWN))) for offset, count in stated)
    # FFmpeg takes the largest number for "to the end of the file", libsndfile for a number.
    return Header(patches, "it is longer than its header can say" if size - begin > UNKNOWN else "")


def _is_recording(stream: Any, at: int, data: bytes) -> bool:
    """Whether another recording begins with the data that were read at an offset."""
    if data[:4] in (b"RIFF", b"RF64", b"FORM"):
        return data[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    return data[:4] in (b"fLaC", b"OggS", b"caff") or mpeg.begins(stream, at)


def _chunk_names(stream: Any, at: int, size: int, order: str) -> set[bytes] | None:
    """Names of the chunks that the rest of the file is made of, of which the last may be cut off; None where it is
    something else."""
    names: set[bytes] = set()
    for _ in range(MOST_CHUNKS):
        if at + 8 > size:
            return names
        name, length = struct.unpack(f"{order}4sI", read_at(stream, at, 8))
        names.add(name)
        if not all(32 <= byte < 127 for byte in name):
            return None
        at += 8 + length + length % 2
        if at > size + 1 and name not in AFTER:
            return None
    return None


def inspect_caf(stream: Any, start: int, size: int) -> Header:
    """The same of Apple's CAF, whose chunks have sizes of 64 bits; -1 of the sound: to the end of the file."""
    at = start + 8
    for _ in range(MOST_CHUNKS):
        if at + 12 > size:
            break
        name, length = struct.unpack(">4sq", read_at(stream, at, 12))
        if name != b"data" and length >= 0:
            at += 12 + length
            continue
        end = at + 12 + length
        if name != b"data" or length < 0 or end + 12 > size:
            break
        follows = read_at(stream, end, PADDING)
        if _is_recording(stream, end, follows):
            return Header(refused=f"another recording follows {length:,} bytes of sound: make each a file of its own")
        padding = length and end + len(follows) == size and not follows.strip(b"\0")
        if padding or _are_caf_chunks(stream, end, size):
            break
        return Header(((at + 4 - start, struct.pack(">q", -1)),))
    return Header()


def _are_caf_chunks(stream: Any, at: int, size: int) -> bool:
    """Whether the rest of the file is one chunk after another."""
    for _ in range(MOST_CHUNKS):
        if at + 12 > size:
            return at <= size
        name, length = struct.unpack(">4sq", read_at(stream, at, 12))
        if length < 0 or not all(32 <= byte < 127 for byte in name):
            return False
        at += 12 + length
    return False
