"""What a file is by its first bytes, whatever its name, and whether its header can be trusted to say how long it is."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ajepa.audio import chunks, flac, mpeg
from ajepa.audio.remote_file import READ_AHEAD
from ajepa.audio.streams import read_at, size_of

HEAD = 4096  # bytes that tell containers apart

MP4, MATROSKA, ASF, ADTS = "MP4 (M4A)", "Matroska (WebM)", "ASF (WMA)", "AAC (ADTS)"
OGG, OGG_FLAC, FLAC, MP3, WAV, RF64, AIFF, AU = "Ogg", "FLAC in Ogg", "FLAC", "MP3", "WAV", "RF64", "AIFF", "AU"
CAF = "CAF"
ONLY_AV = frozenset({MP4, MATROSKA, ASF, ADTS, OGG_FLAC})  # libsndfile reads none of them
FORMATS = {  # FFmpeg's names; it is never left to guess what may open other files, as playlists do
    MP4: "mov", MATROSKA: "matroska", ASF: "asf", ADTS: "aac", OGG: "ogg", OGG_FLAC: "ogg", FLAC: "flac", MP3: "mp3",
    WAV: "wav", RF64: "wav", AIFF: "aiff", AU: "au", CAF: "caf",
}  # fmt: skip


ANOTHER = "another recording follows the first: make each a file of its own"
FORM_TYPES = {WAV: (b"WAVE",), RF64: (b"WAVE",), AIFF: (b"AIFF", b"AIFC")}  # bytes 8 to 11 of files of chunks


@dataclass(frozen=True)
class Container:
    """What was found in a file."""

    name: str  # "" where the bytes say nothing
    doubt: str = ""  # why its header does not tell where the sound ends
    seconds: float | None = None  # counted, where the header says nothing of them
    patches: tuple[tuple[int, bytes], ...] = ()  # what the header should hold: offset from start, bytes
    start: int = 0  # bytes before it that no decoder needs to see: tags of another format
    refused: str = ""  # why no decoder would read all of it


def needs_av(found: Container) -> bool:
    """Whether libsndfile does not read it, or not to its end."""
    return found.name in ONLY_AV or bool(found.doubt)


def inspect(stream: Any) -> Container:
    """Look at a seekable stream; its position is 0 afterwards."""
    start, skipped = mpeg.after_tags(stream)
    size = size_of(stream)
    head = read_at(stream, start, HEAD)
    name = _name(head)
    if name == FLAC:
        found = _flac(stream, start, size, head)
    elif name in FORM_TYPES:
        wrong = chunks.inspect(stream, start, size)
        found = Container(name, wrong.doubt, patches=wrong.patches, refused=wrong.refused)
    elif name == CAF:
        wrong = chunks.inspect_caf(stream, start, size)
        found = Container(name, patches=wrong.patches, refused=wrong.refused)
    elif name == ASF:
        found = _asf(stream, start, size)
    elif name == AU:
        found = _au(head, size - start)
    elif name in (OGG, OGG_FLAC):
        found = _ogg(name, stream, start, size)
    elif name == MP3 or (start and not name):  # its frames may come after bytes that are none
        seconds, doubt = mpeg.inspect(stream, start, size)
        found = Container(MP3 if name or seconds or doubt else "", doubt, seconds)
    elif name == MP4:
        found = _mp4(stream, start, size)
    else:
        found = Container(name)
    stream.seek(0)
    return found if name == MP3 and skipped else replace(found, start=start)


def _name(head: bytes) -> str:
    if head[4:8] == b"ftyp" or (head[4:8] in (b"moov", b"mdat", b"wide") and head[:2] == b"\0\0"):
        return MP4
    if head[:4] == b"OggS":
        return OGG_FLAC if b"\x7fFLAC" in head[27:300] else OGG
    starts = {
        b"\x1aE\xdf\xa3": MATROSKA, b"0&\xb2u": ASF, b"fLaC": FLAC, b".snd": AU, b"RIFF": WAV, b"RF64": RF64,
        b"FORM": AIFF, b"caff": CAF,
    }  # fmt: skip
    for start, name in starts.items():
        if head.startswith(start) and head[8:12] in FORM_TYPES.get(name, (head[8:12],)):
            return name
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:  # layer 0
        return ADTS
    return MP3 if mpeg.is_frame(head) else ""


def _mp4(stream: Any, at: int, size: int) -> Container:
    """The boxes of the file in order: fragments come without a length (ISO 14496-12)."""
    start = at
    while at + 16 <= size:
        header = read_at(stream, at, 16)
        length, kind = struct.unpack_from(">I4s", header)
        if kind == b"ftyp" and at > start:
            return Container(MP4, refused=ANOTHER)
        if kind == b"moof":
            return Container(MP4, "it comes in fragments")
        if length == 1:
            length = struct.unpack_from(">Q", header, 8)[0]
        if length < 8:  # 0: to the end of the file
            break
        at += length
    return Container(MP4)


def _asf(stream: Any, start: int, size: int) -> Container:
    """The objects of the file in order; a second header begins another recording."""
    header, at = read_at(stream, start, 16), start
    for _ in range(chunks.MOST_CHUNKS):
        if at + 24 > size:
            break
        kind, length = struct.unpack("<16sQ", read_at(stream, at, 24))
        if kind == header and at > start:
            return Container(ASF, refused=ANOTHER)
        if length < 24:
            break
        at += length
    return Container(ASF)


def _flac(stream: Any, start: int, size: int, head: bytes) -> Container:
    """STREAMINFO comes first; 36 bits of it are the number of samples, 0 where that was not known (RFC 9639, 8.2). A
    large file of a store is not searched: each place would be a request."""
    total = int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF
    near = isinstance(stream, io.FileIO | io.BytesIO) or size <= READ_AHEAD
    if total and near and flac.has_more(stream, start, size, head):
        return Container(FLAC, refused=ANOTHER)
    return Container(FLAC, "" if total else "it does not say how long it is")


def _au(head: bytes, size: int) -> Container:
    if len(head) < 12:
        return Container(AU)
    start, length = struct.unpack_from(">II", head, 4)
    unknown = length < size - start  # nothing follows the sound
    return Container(AU, patches=((8, b"\xff" * 4),) if unknown else ())


def _ogg(name: str, stream: Any, start: int, size: int) -> Container:
    """Streams that begin after others have ended are found by their first pages, lost pages by the numbers of the pages
    that are there (RFC 3533, 4 and 6)."""
    begun = False
    last: dict[int, Page] = {}  # by stream
    for page in _pages(stream, start, size):
        before = last.get(page.stream)
        if page.first and begun:
            if page.after_others:
                return Container(name, refused=ANOTHER)
            return Container(name, "several recordings follow one another in it")
        # A capture of a running stream goes on at any number after its headers, which end at sample 0.
        if before and before.position and not page.first and page.number != (before.number + 1) % (1 << 32):
            return Container(name, refused=f"part of the sound is missing: page {page.number} follows {before.number}")
        begun = begun or not page.first
        last[page.stream] = page
    return Container(name)


class Page(NamedTuple):
    """What the header of an Ogg page says."""

    first: bool  # of its stream
    position: int  # samples up to its end; -1 where none ends in it
    stream: int
    number: int
    after_others: bool  # bytes that are no page come before it


def _pages(stream: Any, at: int, size: int) -> Iterator[Page]:
    """The pages of an Ogg file in order. Bytes between them are passed over."""
    end = at  # of the page before
    while at + 27 <= size:
        header = read_at(stream, at, 27)
        if header[:5] != b"OggS\0":
            at = _find(stream, b"OggS\0", at + 1, size)
            continue
        position, serial, number = struct.unpack_from("<qII", header, 6)
        yield Page(bool(header[5] & 2), position, serial, number, at > end)
        at += 27 + header[26] + sum(read_at(stream, at + 27, header[26]))
        end = at


def _find(stream: Any, what: bytes, at: int, size: int) -> int:
    """Offset of bytes at or after one, or the size."""
    while at < size:
        data = read_at(stream, at, READ_AHEAD)
        if (place := data.find(what)) >= 0:
            return at + place
        at += max(len(data) - len(what) + 1, 1)
    return size
