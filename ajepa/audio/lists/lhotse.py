"""Recordings and cuts of lhotse, one JSON object a line (or in an array)."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ajepa.audio.lists.rows import Rows
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

LINES = 1 << 15  # made into columns at a time
CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
SPOKEN = ("text", "speaker", "language", "gender")  # of a supervision; labels only where --columns says so
READ_SCHEMES = ("s3://", "gs://", "file://")


def is_lhotse(first: dict[str, Any]) -> bool:
    """Whether the first object of a list is a recording or a cut."""
    return first.get("type") in CUTS or _is_recording(first) or _is_recording(first.get("recording"))


def _is_recording(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("sources"), list) and "sampling_rate" in found


class _Refused(Exception):
    """What cannot be read of a recording or a cut: its kind, and what it is."""


def read_lhotse(path: str, objects: Iterable[tuple[int, dict[str, Any]]]) -> UserList:
    """The clips of recordings or cuts, with what their `custom` fields and supervisions say, as columns.

    Cuts that are mixed, padding or without a recording, and recordings that are commands, in memory or on the web are
    left out and named.

    Raises:
        UserError: an object is neither or lacks a part, all are left out, or a recording's channels lie in several
            files.
    """
    rows = Rows(path, "line")
    left_out: Counter[str] = Counter()
    examples: dict[str, str] = {}
    missing: list[str] = []
    changed: Counter[str] = Counter()

    def clips() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, found in objects:
            what = f"line {number} of the manifest {path!r}"
            try:
                yield number, _clip(found, what, changed)
            except _Refused as refused:
                kind, example = refused.args
                left_out[kind] += 1
                examples.setdefault(kind, example)
                missing.append(str(found.get("id")))
            except UserError:
                raise
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                why = f"without {error}" if isinstance(error, KeyError) else str(error)
                raise UserError(f"{what} is no recording or cut of lhotse ({why})") from error

    found = clips()
    while block := list(islice(found, LINES)):
        rows.add_objects([clip for _, clip in block], [number for number, _ in block])
    remarks = [f"entries of lhotse left out: {count}, {kind} ({examples[kind]})" for kind, count in left_out.items()]
    if left_out and rows.empty:
        raise UserError(f"no entry of the manifest {path!r} can be read: {'; '.join(remarks)}")
    remarks += [f"{what}: {count}" for what, count in changed.items()]
    return UserList(rows.names, rows.read, remarks=tuple(remarks), missing=tuple(missing))


def _clip(found: dict[str, Any], what: str, changed: Counter[str]) -> dict[str, Any]:
    if _is_recording(found):
        return _custom(found) | {"clip_id": str(found["id"]), "uri": _file(found, what, changed)}
    kind = found.get("type", "MonoCut")
    if kind in ("MixedCut", "PaddingCut"):
        raise _Refused(f"a {kind} is no piece of one file", repr(found["id"]))
    recording = found.get("recording")
    if recording is None:
        raise _Refused("a cut without a recording", repr(found["id"]))
    uri = _file(recording, what, changed)
    channels = recording["sources"][0].get("channels") or [0]
    wanted = found.get("channel", 0)
    if len(channels) > 1 and wanted != channels:
        changed["cuts that choose among the channels of their file, all of which are averaged"] += 1
    times = {"start_s": float(found["start"]), "duration_s": float(found["duration"])}
    clip = {"clip_id": str(found["id"]), "uri": uri, **times}
    return _custom(found) | _supervised(found.get("supervisions") or []) | clip


def _file(recording: dict[str, Any], what: str, changed: Counter[str]) -> str:
    """The one file of a recording."""
    sources = recording["sources"]
    if len(sources) != 1:
        raise UserError(
            f"{what}: the recording {recording['id']!r} has its channels in {len(sources)} files; a clip is one file: "
            "join them first"
        )
    kind, source = sources[0]["type"], sources[0]["source"]
    if kind == "url" and str(source).startswith(READ_SCHEMES):
        kind = "file"
    if kind == "shar":
        raise _Refused("the sound of a Shar is in its recording.*.tar: --source webdataset", repr(recording["id"]))
    if kind != "file":
        raise _Refused(f"a source of type {kind!r} is not read", f"{recording['id']!r}: {str(source)[:200]!r}")
    if recording.get("transforms"):
        changed["recordings with transforms, which are not applied"] += 1
    return str(source)


def _custom(found: dict[str, Any]) -> dict[str, Any]:
    """Texts, numbers and lists among the fields that the list's maker added."""
    custom = found.get("custom") or {}
    return {name: value for name, value in custom.items() if isinstance(value, str | int | float | list)}


def _supervised(supervisions: list[dict[str, Any]]) -> dict[str, Any]:
    """What the supervisions of a cut say, a list of values a field."""
    found: dict[str, Any] = {}
    for supervision in supervisions:
        said = {name: supervision[name] for name in SPOKEN if supervision.get(name) is not None} | _custom(supervision)
        for name, value in said.items():
            found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    return found
