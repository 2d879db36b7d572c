"""MPEG audio (MP3) and the tags around it: how long a file is, and whether one decoder reads it to its end."""

import re
import struct
from typing import Any

from ajepa.audio.streams import read_at

CHUNK = 1 << 16
LOST = 1 << 20  # bytes without a frame after which no more are looked for
MOST_TAGS = 100  # behind a recording
KBIT = {  # of MPEG audio by version 1 or not, layer, and index (ISO 11172-3 2.4.2.3, ISO 13818-3 2.4.2.3)
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}
TAG = re.compile(rb"TAG|APETAGEX|ID3")
SYNC = re.compile(rb"\xff[\xe2-\xff]")
SEVERAL = "several recordings follow one another in it, or part of it is no sound"
VARIES = "its bit rate varies and it does not say how long it is"


def is_frame(header: bytes) -> bool:
    """Whether bytes begin like a frame whose length can be computed."""
    return (
        len(header) >= 4
        and header[0] == 0xFF
        and header[1] & 0xE0 == 0xE0
        and header[1] & 0x18 != 0x08  # a version
        and bool(header[1] & 0x06)  # a layer
        and header[2] >> 4 not in (0, 15)  # a bit rate
        and header[2] & 0x0C != 0x0C  # a sample rate
    )


def after_tags(stream: Any) -> tuple[int, bool]:
    """Where the sound begins after ID3v2 tags and their padding, which come before files of any format, and whether
    libsndfile comes to the same place: it skips one tag without a footer (ID3v2.4, 3.4) or padding behind it."""
    at = count = 0
    while length := _id3(read_at(stream, at, 10)):
        at += length
        count += 1
    if not count:
        return 0, True
    zeros = read_at(stream, at, CHUNK)
    padding = len(zeros) - len(zeros.lstrip(b"\0"))
    # The first bytes of other formats may be zeros: a box of an MP4 file begins with its length.
    if not is_frame(zeros[padding : padding + 4]):
        padding = 0
    return at + padding, count == 1 and not padding and not read_at(stream, 5, 1)[0] & 0x10


def begins(stream: Any, at: int) -> bool:
    """Whether a recording begins here or behind a tag: three frames of one kind, as any bytes may look like one."""
    at += _id3(read_at(stream, at, 10))
    for _ in range(2):
        header = read_at(stream, at, 4)
        if not is_frame(header) or not _followed(stream, at, header):
            return False
        at += _frame(header)[0]
    return True


def inspect(stream: Any, at: int, size: int) -> tuple[float | None, str]:
    """Seconds of the frames from an offset on, where they have to be counted, and why only PyAV reads the file to its
    end. A Xing header counts the bytes of its own recording, which another one may follow. Without one the length is
    guessed from the first bit rate, rightly if all frames have it."""
    stated = _xing(read_at(stream, at, 256))
    if stated and at + stated <= size:
        return None, SEVERAL if _frames_follow(stream, at + stated, size) else ""
    end, seconds, rates = _run(stream, at, size)
    if _frames_follow(stream, end, size):
        return None, SEVERAL
    return seconds or None, VARIES if len(rates) > 1 else ""


def _xing(head: bytes) -> int:
    """Bytes of the recording as its Xing header counts them, 0 if it has none or does not say."""
    place = max(head.find(b"Xing", 0, 200), head.find(b"Info", 0, 200))
    if place < 0 or len(head) < place + 16 or head[place + 7] & 3 != 3:  # it has the number of frames, then of bytes
        return 0
    return int(struct.unpack_from(">I", head, place + 12)[0])


def _id3(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins here, or 0."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _run(stream: Any, at: int, size: int) -> tuple[int, float, set[int]]:
    """Where the frames from an offset on end that follow one another, their seconds, and their bit rates."""
    seconds, rates = 0.0, set()
    while at < size and is_frame(header := read_at(stream, at, 4)):
        length, duration, rate = _frame(header)
        at += length
        seconds += duration
        rates.add(rate)
    return at, seconds, rates


def _frame(header: bytes) -> tuple[int, float, int]:
    """Bytes, seconds and kbit/s of a frame."""
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate = KBIT[version == 3, layer][(header[2] >> 4) - 1]
    hertz = (44_100, 48_000, 32_000)[header[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    padding = header[2] >> 1 & 1
    if layer == 1:
        length = 4 * (12_000 * rate // hertz + padding)
    else:
        length = (72_000 if layer == 3 and version != 3 else 144_000) * rate // hertz + padding
    return length, {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer] / hertz, rate


def _frames_follow(stream: Any, at: int, size: int) -> bool:
    """Whether frames begin again after tags or other bytes. Any two bytes may look like a frame: one has to be followed
    by another of its kind."""
    limit, tags = min(size, at + LOST), 0
    while at < limit:
        data = read_at(stream, at, CHUNK)
        if length := _tag(data):
            at += length
            limit, tags = min(size, at + LOST), tags + 1
            if tags > MOST_TAGS:  # each costs a read: PyAV may look for the end
                return True
            continue
        place = next((found.start() for found in TAG.finditer(data)), len(data))
        for found in SYNC.finditer(data, 0, place):
            header = data[found.start() : found.start() + 4]
            if is_frame(header) and _followed(stream, at + found.start(), header):
                return True
        at += max(min(place, len(data) - 7), 1)  # a tag that is cut off is passed byte by byte
    return False


def _followed(stream: Any, at: int, header: bytes) -> bool:
    following = read_at(stream, at + _frame(header)[0], 4)
    return is_frame(following) and following[1] == header[1] and following[2] & 0x0C == header[2] & 0x0C


def _tag(data: bytes) -> int:
    """Bytes of the tag of any kind that begins here, or 0: their pictures may look like frames."""
    if data[:3] == b"TAG":
        return 128
    if data[:8] == b"APETAGEX" and len(data) >= 24:  # the size leaves out this header, if it is one
        size, flags = struct.unpack_from("<I", data, 12)[0], struct.unpack_from("<I", data, 20)[0]
        return 32 + (size if flags & 1 << 29 else 0)
    return _id3(data)
