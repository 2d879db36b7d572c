"""What a file is by its first bytes, whatever its name, and whether its header can be trusted to say how long it is."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HEAD = 4096  # bytes that tell containers apart
ID3 = 10  # bytes of the header of an ID3v2 tag

MP4, MATROSKA, ASF, ADTS = "MP4 (M4A)", "Matroska (WebM)", "ASF (WMA)", "AAC (ADTS)"
OGG, OGG_FLAC, FLAC, MP3, WAV, AU = "Ogg", "FLAC in Ogg", "FLAC", "MP3", "WAV", "AU"
ONLY_AV = frozenset({MP4, MATROSKA, ASF, ADTS, OGG_FLAC})  # libsndfile reads none of them
FORMATS = {  # FFmpeg's names; it is never left to guess what may open other files, as playlists do
    MP4: "mov", MATROSKA: "matroska", ASF: "asf", ADTS: "aac", OGG: "ogg", OGG_FLAC: "ogg", FLAC: "flac", MP3: "mp3",
    WAV: "wav", AU: "au",
}  # fmt: skip


@dataclass(frozen=True)
class Container:
    """What was found in a file."""

    name: str  # "" where the bytes say nothing
    doubt: str = ""  # why its header does not tell where the sound ends
    seconds: float | None = None  # counted, where the header says nothing of them
    patches: tuple[tuple[int, bytes], ...] = ()  # what the header should hold: offset, bytes


def inspect(stream: Any) -> Container:
    """Look at a seekable stream; its position is 0 afterwards."""
    stream.seek(0)
    head = _read(stream, HEAD)
    name = _name(head)
    if name == FLAC:
        found = _flac(head)
    elif name == WAV:
        found = _wav(head, _size(stream))
    elif name == AU:
        found = _au(head, _size(stream))
    elif name == OGG:
        found = _ogg(stream, head)
    elif name == MP3:
        found = _mp3(stream, head)
    elif name == MP4:
        found = _mp4(stream)
    else:
        found = Container(name)
    stream.seek(0)
    return found


def _read(stream: Any, count: int) -> bytes:
    """So many bytes, or all there are: a raw stream may give fewer at a time."""
    parts = []
    while count > 0 and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _size(stream: Any) -> int:
    return int(stream.seek(0, io.SEEK_END))


def _name(head: bytes) -> str:
    if head[4:8] == b"ftyp" or (head[4:8] in (b"moov", b"mdat", b"wide") and head[:2] == b"\0\0"):
        return MP4
    if head[:4] == b"OggS":
        return OGG_FLAC if b"\x7fFLAC" in head[27:300] else OGG
    starts = {
        b"\x1aE\xdf\xa3": MATROSKA, b"0&\xb2u": ASF, b"fLaC": FLAC, b".snd": AU, b"ID3": MP3, b"RIFF": WAV,
    }  # fmt: skip
    for start, name in starts.items():
        if head.startswith(start) and (name != WAV or head[8:12] == b"WAVE"):
            return name
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        if head[1] & 0xF6 == 0xF0:  # layer 0
            return ADTS
        if head[1] & 0x06 and head[1] & 0x18 != 0x08 and head[2] >> 4 not in (0, 15):
            return MP3
    return ""


def _mp4(stream: Any) -> Container:
    """The boxes of the file in order: fragments come without a length (ISO 14496-12)."""
    at, size = 0, _size(stream)
    while at + 16 <= size:
        stream.seek(at)
        header = _read(stream, 16)
        length, kind = struct.unpack_from(">I4s", header)
        if kind == b"moof":
            return Container(MP4, "it comes in fragments")
        if length == 1:
            length = struct.unpack_from(">Q", header, 8)[0]
        if length < 8:  # 0: to the end of the file
            break
        at += length
    return Container(MP4)


def _flac(head: bytes) -> Container:
    """STREAMINFO comes first; 36 bits of it are the number of samples, 0 where that was not known (RFC 9639, 8.2)."""
    total = int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF
    return Container(FLAC, "" if total else "it does not say how long it is")


def _wav(head: bytes, size: int) -> Container:
    at = 12
    while at + 8 <= len(head):
        length = struct.unpack_from("<I", head, at + 4)[0]
        if head[at : at + 4] == b"data":
            rest = size - at - 8
            if length or not rest:
                break
            patches = ((4, struct.pack("<I", size - 8)), (at + 4, struct.pack("<I", rest)))
            return Container(WAV, patches=patches if size < 1 << 32 else ())
        at += 8 + length + length % 2
    return Container(WAV)


def _au(head: bytes, size: int) -> Container:
    if len(head) < 12:
        return Container(AU)
    start, length = struct.unpack_from(">II", head, 4)
    unknown = not length and size > start
    return Container(AU, patches=((8, b"\xff" * 4),) if unknown else ())


def _ogg(stream: Any, head: bytes) -> Container:
    """Streams that begin after others have ended (RFC 3533, 4) are found by their first pages."""
    size, begun = _size(stream), False
    name = OGG
    for flags in _pages(stream, size):
        first = bool(flags & 2)
        if first and begun:
            return Container(name, "several recordings follow one another in it")
        begun = begun or not first
    return Container(name)


def _pages(stream: Any, size: int) -> Iterator[int]:
    """Flags of the pages of an Ogg file in order, as far as it is one."""
    at = 0
    while at + 27 <= size:
        stream.seek(at)
        header = _read(stream, 27)
        if header[:4] != b"OggS":
            return
        yield header[5]
        at += 27 + header[26] + sum(_read(stream, header[26]))


def _mp3(stream: Any, head: bytes) -> Container:
    """A Xing header counts the bytes of its own recording, which another one may follow. Without one the length is
    guessed from the first bit rate, rightly if all frames have it."""
    at = 0
    if head[:3] == b"ID3":
        at = ID3 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
        stream.seek(at)
        head = _read(stream, HEAD)
        if _name(head) == ADTS:
            return Container(ADTS)
    place = max(head.find(b"Xing", 0, 200), head.find(b"Info", 0, 200))
    if place > 0 and len(head) >= place + 16:
        flags = head[place + 7]
        if flags & 3 == 3:  # it has the number of frames, then that of bytes
            length = struct.unpack_from(">I", head, place + 12)[0]
            stream.seek(at + length)
            follows = _name(_read(stream, HEAD)) == MP3
            return Container(MP3, "several recordings follow one another in it" if follows else "")
    frames = list(_frames(stream, at))
    varies = len({rate for rate, _ in frames}) > 1
    doubt = "its bit rate varies and it does not say how long it is" if varies else ""
    return Container(MP3, doubt, seconds=sum(seconds for _, seconds in frames))


KBIT = {  # of MPEG audio by version 1 or not, layer, and index (ISO 11172-3 2.4.2.3, ISO 13818-3 2.4.2.3)
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}


def _frames(stream: Any, at: int) -> Iterator[tuple[int, float]]:
    """Bit rate and seconds of each frame of MPEG audio from an offset on, as far as one follows the other."""
    while True:
        stream.seek(at)
        header = _read(stream, 4)
        if len(header) < 4 or _name(header + bytes(4)) != MP3 or header[2] & 0x0C == 0x0C:
            return
        version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
        rate = KBIT[version == 3, layer][(header[2] >> 4) - 1]
        hertz = (44_100, 48_000, 32_000)[header[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
        padding = header[2] >> 1 & 1
        if layer == 1:
            at += 4 * (12_000 * rate // hertz + padding)
        else:
            at += (72_000 if layer == 3 and version != 3 else 144_000) * rate // hertz + padding
        yield rate, {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer] / hertz


class Patched(io.RawIOBase):
    """A stream with some bytes of its header replaced."""

    def __init__(self, stream: Any, patches: tuple[tuple[int, bytes], ...]) -> None:
        self._stream, self._patches = stream, patches

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        data = bytearray(self._stream.read(len(buffer)))
        for offset, patch in self._patches:
            for i, byte in enumerate(patch, offset - start):
                if 0 <= i < len(data):
                    data[i] = byte
        buffer[: len(data)] = data
        return len(data)
