"""What is in a tar archive: headers are read and the sound is passed over, so an index takes a request a member."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ajepa import storage
from ajepa.audio.decode import AUDIO_EXTENSIONS
from ajepa.audio.listing import is_text
from ajepa.errors import UserError, one_line

HOP = 16 << 10  # bytes read at a place: the header there, and small members behind it
MOST_HEADER = 1 << 20  # bytes of a header, extended ones included
MOST_SIDE = 1 << 20  # bytes of a file of labels
LABEL_KEYS = ("labels", "label", "tags", "tag", "categories", "category", "classes", "class", "species")
COMPRESSED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip
BEHIND = 64 << 10  # bytes behind the end of an archive that are looked at; writers fill it up with zeros


@dataclass(frozen=True)
class Member:
    """A sound of an archive."""

    name: str
    key: str
    offset: int
    size: int  # in bytes
    problem: str = ""  # why it cannot be read
    labels: tuple[str, ...] = ()
    split: str = ""
    fold: int = -1


@dataclass(frozen=True)
class TarIndex:
    """The sounds of an archive in its order, and what else there is to say of it."""

    members: list[Member]
    remarks: dict[str, tuple[int, str]]  # kind: how many, the first


def index_tar(where: str, columns: Mapping[str, str]) -> TarIndex:
    """Read the headers of a tar archive, and the small files of labels beside its sounds (.json, .cls, .txt).

    Args:
        columns: "labels", "split" and "fold" to what they are read from: "cls", "txt", or a path into the JSON as
            "json.tag"; by default labels come from .cls or the first of LABEL_KEYS in the JSON.

    Raises:
        UserError: no archive, or a compressed one.
        OSError: it cannot be read.
    """
    return storage.with_retries(where, lambda: _index(where, columns))


class _Hops:
    """The file as tarfile reads it: a little at each place, with a bound."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._at, self._start, self._held = stream, 0, 0, b""
        self.size = int(stream.size())

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self.size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        if count < 0 or count > MOST_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        at = self._at - self._start
        if at < 0 or at + count > len(self._held):
            self._start, at = self._at, 0
            self._held = self._stream.read_at(max(count, HOP), self._at) if self._at < self.size else b""
        data = self._held[at : at + count]
        self._at += len(data)
        return data


def _index(where: str, columns: Mapping[str, str]) -> TarIndex:
    remarks: dict[str, tuple[int, str]] = {}
    sounds: list[tuple[str, int, int, str]] = []  # name, offset, size, problem
    sides: list[tuple[str, int, dict[str, Any]]] = []  # name, sounds before it, and its labels, split and fold
    with storage.open_input(where) as stream:
        hops = _Hops(stream)
        for info in _infos(where, hops, remarks):
            suffix = PurePosixPath(info.name).suffix.lower()
            name = info.name.removeprefix("./")
            if not is_text(name):
                _count(remarks, "members whose names are not UTF-8", ascii(name))
            elif PurePosixPath(name).name.startswith("._") or "__MACOSX" in PurePosixPath(name).parts:
                _count(remarks, "files of macOS", name)
            elif suffix in AUDIO_EXTENSIONS:
                sounds.append((name, info.offset_data, min(info.size, hops.size), _problem(info, hops.size)))
            elif suffix in (".json", ".cls", ".txt") and info.isreg():
                found = _side(hops, info, suffix, columns)
                if found is None:
                    _count(remarks, f"{suffix} files that cannot be read", name)
                else:
                    sides.append((name, len(sounds), found))
                    if found.get("labels") is not None:
                        _count(remarks, f"files gave labels ({found['from']})", name)
            elif info.isreg():
                _count(remarks, "other members", name)
    return TarIndex(_joined(sounds, sides, remarks), remarks)


def _infos(where: str, hops: _Hops, remarks: dict[str, tuple[int, str]]) -> Iterator[tarfile.TarInfo]:
    """Every header, until the archive ends or is damaged."""
    head = hops.read(min(tarfile.BLOCKSIZE, hops.size))
    is_tar = head[257:262] == b"ustar"  # whatever its first member is called
    found = next((what for start, what in COMPRESSED.items() if head.startswith(start) and not is_tar), None)
    if found is not None:
        raise UserError(f"{where!r} is compressed ({found}): no part of it can be read alone. Make it a plain .tar")
    if not head:
        _count(remarks, "empty archives", where)
        return
    hops.seek(0)
    try:
        archive = tarfile.TarFile(fileobj=hops, mode="r")  # type: ignore[arg-type]
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{where!r} is no tar archive ({one_line(error)})") from error
    count, at = 0, -1
    try:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # millions of them
            if info.size < 0 or archive.offset <= at:
                raise tarfile.ReadError(f"a member of {info.size} bytes")
            count, at = count + 1, archive.offset
            yield info
    except (tarfile.TarError, ValueError, EOFError) as error:
        # Of a member that is cut off the header was read: it is a row of its own.
        _count(remarks, f"archives that are cut off or damaged ({one_line(error)}): what follows is lost", where)
        return
    hops.seek(archive.offset)
    end = hops.read(BEHIND)  # tarfile takes a header that it cannot read, or one of zeros, for the end
    if any(end[: tarfile.BLOCKSIZE]):
        _count(remarks, f"archives that are damaged (at byte {archive.offset:,}): what follows is lost", where)
    elif any(end) or hops.size - archive.offset > 1 << 20:
        what = f"archives that go on behind their end (at byte {archive.offset:,}), as joined ones: that is not read"
        _count(remarks, what, where)
    elif not count:
        _count(remarks, "empty archives", where)
    elif not end:
        _count(remarks, "archives without their closing blocks, which may be cut off", where)


def _problem(info: tarfile.TarInfo, size: int) -> str:
    """Why a member cannot be read; "" where it can."""
    if info.issparse():
        return "a sparse member of the archive: pack it without --sparse"
    if not info.isreg():
        return f"this member of the archive is a link to {info.linkname!r}"
    if info.offset_data + info.size > size:
        return f"the archive ends {info.offset_data + info.size - size:,} bytes before this member does"
    return ""


def _side(hops: _Hops, info: tarfile.TarInfo, suffix: str, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """What a file of labels says; None where it cannot be read."""
    wanted = suffix[1:]
    if suffix == ".txt" and "txt" not in columns.values():
        return {}  # captions
    if info.size > MOST_SIDE:
        return None
    place = hops.tell()
    hops.seek(info.offset_data)
    data = hops.read(info.size)
    hops.seek(place)
    try:
        text = data.decode("utf-8-sig").strip()
        content = json.loads(text) if wanted == "json" else text
    except (ValueError, RecursionError):
        return None
    found: dict[str, Any] = {}
    for name in ("labels", "split", "fold"):
        path = columns.get(name, "")
        if path.partition(".")[0] == wanted:
            found |= {name: _inside(content, path.split(".")[1:]), "from": path}
    if "labels" not in columns:
        if wanted == "cls":
            found |= {"labels": content, "from": "cls"}
        elif isinstance(content, dict):
            key = next((key for key in LABEL_KEYS if content.get(key) is not None), None)
            found |= {} if key is None else {"labels": content[key], "from": f"json.{key}"}
    return found


def _inside(content: Any, path: list[str]) -> Any:
    for part in path:
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _joined(
    sounds: list[tuple[str, int, int, str]],
    sides: list[tuple[str, int, dict[str, Any]]],
    remarks: dict[str, tuple[int, str]],
) -> list[Member]:
    """Sounds with what the files beside them say, by their common key.

    WebDataset's key ends at the first dot of a name, so that "a.b.flac" would be "a". Here it ends at the last one,
    which leaves ids with dots alone; only where more of the files of labels find their sound by the first dot, as
    "a.audio.flac" and "a.meta.json", that rule is taken.
    """
    rules = (_to_last_dot, _to_first_dot)
    keys = [{rule(sound[0]) for sound in sounds} for rule in rules]
    found = [sum(rule(name) in those for name, _, _ in sides) for rule, those in zip(rules, keys, strict=True)]
    unique = len({_to_first_dot(s[0]) for s in sounds}) == len(sounds)
    rule = rules[found[1] > found[0] and unique]
    if rule is _to_first_dot:
        _count(remarks, "archives whose keys end at the first dot", sounds[0][0])
    places: dict[str, list[int]] = {}  # numbers of the sounds of a key
    for i, sound in enumerate(sounds):
        places.setdefault(rule(sound[0]), []).append(i)
    merged: dict[int, dict[str, Any]] = {}  # by number of the sound: where a key comes again, the last one before it
    for name, before, side in sides:
        of_key = places.get(rule(name))
        if of_key is None:
            _count(remarks, "samples without sound", rule(name))
            continue
        number = max((i for i in of_key if i < before), default=of_key[0])
        merged[number] = merged.get(number, {}) | {k: v for k, v in side.items() if v is not None}
    members: list[Member] = []
    times: dict[str, int] = {}
    for i, (name, offset, size, problem) in enumerate(sounds):
        key = rule(name)
        if i and rule(sounds[i - 1][0]) == key and sounds[i - 1][0] != name:  # two fields of one sample
            _count(remarks, "samples with a second sound, of which the first is taken", name)
            continue
        times[key] = times.get(key, 0) + 1
        if times[key] > 1:
            _count(remarks, "keys that come again in one archive, numbered #2 and on", name)
        side = merged.get(i, {})
        members.append(Member(
            name, key if times[key] == 1 else f"{key}#{times[key]}", offset, size, problem,
            _label_names(side.get("labels")), _text(side.get("split", "")), _number(side.get("fold")),
        ))  # fmt: skip
    return members


def _to_last_dot(name: str) -> str:
    return name.rpartition(".")[0]


def _to_first_dot(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label_names(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return tuple(_text(v) for v in values if isinstance(v, str | int | float) and str(v).strip())


def _text(value: Any) -> str:
    """Without the halves of characters that JSON can name."""
    return str(value).encode("utf-8", "replace").decode()


def _number(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return -1
    return number if abs(number) < 1 << 31 else -1


def _count(remarks: dict[str, tuple[int, str]], kind: str, example: str) -> None:
    count, first = remarks.get(kind, (0, example))
    remarks[kind] = count + 1, first
