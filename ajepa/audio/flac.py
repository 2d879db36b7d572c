"""FLAC files that hold more than their header says, as `cat a.flac b.flac` makes them: decoders read the first
recording alone. Frames are numbered (RFC 9639, 9.1), so a few of them tell."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ajepa.audio.streams import read_at

Kind = tuple[int, int]  # codes of sample rate and bits

STREAMINFO = 42  # bytes: marker, block header, STREAMINFO (RFC 9639, 8.2)
# A frame header (9.1), of frames that all have one size: sync code, sizes that are not reserved, 0 to 10 for channels.
HEADER = re.compile(rb"\xff\xf8[\x10-\xff][\x00-\xaf]", re.DOTALL)
LOOK = 1 << 16  # bytes that are looked at in a place: two frames or more


def has_more(stream: Any, start: int, size: int, head: bytes) -> bool:
    """Whether another recording follows the first one, whose samples the header counts.

    The numbers of frames at several places of one recording rise, and none is beyond its last sample. Where no frames
    are found nothing is known of a place.

    Args:
        start: where the marker is.
        size: of the file, in bytes.
        head: bytes from `start` on.
    """
    total = int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF
    samples = int.from_bytes(head[8:10], "big")  # of a frame
    if len(head) < STREAMINFO or not total or not samples or samples != int.from_bytes(head[10:12], "big"):
        return False  # frames of several sizes are numbered in another way; hardly any encoder makes them
    quarter, length = (size - start) // 4, LOOK
    places = [start, start + quarter, start + 2 * quarter, start + 3 * quarter, size - LOOK]
    if size - start <= len(places) * LOOK:
        places, length = [start], size - start
    found = [frames for place in places if (frames := frames_in(read_at(stream, place, length)))]
    if not found:
        return False
    numbers = [[number for _, number in frames] for frames in found]
    middles = [sorted(row)[len(row) // 2] for row in numbers]
    kinds = {kind for frames in found for kind, _ in frames}
    return (
        len(kinds) > 1
        or any(one >= other for one, other in pairwise(middles))
        or any(len(row) - longest_rise(row) > 1 for row in numbers)
        or (numbers[0][0] == 0 and middles[-1] * samples >= total)
    )


def longest_rise(numbers: Sequence[int]) -> int:
    """How many of the numbers rise, where the fewest are left out. One that is left out may be a coincidence of bytes:
    there are 2 million files in AudioSet."""
    ends: list[int] = []  # the smallest last number of a rise of each length
    for number in numbers:
        at = bisect_left(ends, number)
        ends[at : at + 1] = [number]
    return len(ends)


def frames_in(data: bytes) -> list[tuple[Kind, int]]:
    """What is coded in the headers of the frames that begin in the bytes, in order: sample rate and bits, and the
    number. A header that is like no other one may be a coincidence, although its CRC is right, and is left out."""
    found: list[tuple[Kind, int]] = []
    for match in HEADER.finditer(data):
        at = match.start()
        number = frame_number(data, at)
        if number is not None:
            found.append(((data[at + 2] & 15, data[at + 3] & 14), number))
    often = {kind for kind, count in Counter(kind for kind, _ in found).items() if count > 1}
    return [frame for frame in found if frame[0] in often]


def frame_number(data: bytes, at: int) -> int | None:
    """The number in the frame header that is here; None where its CRC is wrong."""
    header = data[at : at + 16]
    block, rate = header[2] >> 4, header[2] & 15
    number, length = _coded_number(header[4:])
    end = 4 + length + {6: 1, 7: 2}.get(block, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    return number if length and end < len(header) and _crc8(header[:end]) == header[end] else None


def _coded_number(data: bytes) -> tuple[int, int]:
    """A number coded as UTF-8 codes characters, up to 36 bits, and its bytes; (0, 0) where it is none."""
    first = data[0] if data else 0x80
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7 or len(data) < length or any(byte >> 6 != 2 for byte in data[1:length]):
        return 0, 0
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        number = number << 6 | byte & 63
    return number, length


def _crc8(data: bytes) -> int:
    """RFC 9639, 9.1.8: polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7) & 0xFF if crc & 0x80 else crc << 1
    return crc
