"""Kaldi's lists: wav.scp, and beside it segments and utt2label where they are there."""

import re
from collections.abc import Iterator

import pyarrow as pa

from ajepa import storage
from ajepa.audio.lists.text import lines
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

WAV_SCP = "wav.scp"
SEGMENTS = "segments"  # utterance, recording, start, end in seconds
LABELS = "utt2label"  # utterance, labels
ARCHIVE = re.compile(r"\.ark(:\d+)?$")


def read_kaldi(path: str) -> UserList:
    """The utterances of a wav.scp.

    Raises:
        UserError: a line lacks a part, its file is a command or in an archive, or it names a recording that is not
            there.
    """
    files = dict(_files(path))
    folder = path.rpartition("/")[0]
    places = {name: storage.join(folder, name) for name in (SEGMENTS, LABELS) if path.endswith(f"/{WAV_SCP}")}
    beside = {name: place for name, place in places.items() if storage.path_type(place) == "file"}
    columns: dict[str, list] = {"clip_id": list(files), "uri": list(files.values())}
    remarks = []
    if SEGMENTS in beside:
        columns = _segments(beside[SEGMENTS], files, path)
        unused = len(set(files.values()) - set(columns["uri"]))
        remarks.append(f"clips are those of {SEGMENTS} beside the manifest; files without one: {unused}")
    if LABELS in beside:
        labels = {utterance: rest.split() for utterance, rest in _labels(beside[LABELS])}
        columns["labels"] = [labels.get(utterance, []) for utterance in columns["clip_id"]]
        without = sum(utterance not in labels for utterance in columns["clip_id"])
        unknown = len(set(labels) - set(columns["clip_id"]))
        remarks.append(
            f"labels are those of {LABELS} beside the manifest; clips without one: {without}, lines without a clip: "
            f"{unknown}"
        )
    types = {"start_s": pa.float64(), "duration_s": pa.float64(), "labels": pa.list_(pa.string())}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})
    return UserList(table.column_names, table.select, remarks=tuple(remarks))


def _files(path: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for number, line in lines(path):
        what = f"line {number} of {path!r}"
        name, *rest = line.split(maxsplit=1)
        if not rest:
            raise UserError(f"{what} has no file: {line[:200]!r}")
        file = rest[0]
        if file.endswith("|") or file.startswith("|") or file == "-":
            raise UserError(
                f"{what} is a command, and no command of a list is run: {line[:200]!r} (write the sounds to files "
                "once, and list those)"
            )
        if ARCHIVE.search(file):
            raise UserError(f"{what} points into an archive, which is not read: {line[:200]!r} (list the sound files)")
        if name in seen:
            raise UserError(f"{what} has {name!r} a second time")
        seen.add(name)
        yield name, file


def _segments(path: str, files: dict[str, str], wav_scp: str) -> dict[str, list]:
    columns: dict[str, list] = {"clip_id": [], "uri": [], "start_s": [], "duration_s": []}
    for number, line in lines(path):
        what = f"line {number} of {path!r}"
        parts = line.split()
        if len(parts) < 4:
            raise UserError(f"{what} is not `utterance recording start end`: {line[:200]!r}")
        utterance, recording = parts[:2]
        if recording not in files:
            raise UserError(f"{what} names the recording {recording!r}, which {wav_scp!r} has no line of")
        try:
            start, end = float(parts[2]), float(parts[3])
        except ValueError as error:
            raise UserError(f"{what} has a time that is no number of seconds: {line[:200]!r}") from error
        # Kaldi's -1 is the end of the recording.
        values = (utterance, files[recording], start, None if end == -1 else end - start)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


def _labels(path: str) -> Iterator[tuple[str, str]]:
    for number, line in lines(path):
        name, *rest = line.split(maxsplit=1)
        if not rest:
            raise UserError(f"line {number} of {path!r} has no label: {line[:200]!r}")
        yield name, rest[0]
