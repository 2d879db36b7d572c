"""Corpora with a layout of their own: ESC-50, Speech Commands, AudioSet. Each becomes one manifest."""

import csv
import io
import re
from collections import defaultdict
from pathlib import PurePosixPath

from ajepa import storage
from ajepa.audio.class_table import CLASS_TABLE, read_classes
from ajepa.audio.decode import AUDIO_EXTENSIONS
from ajepa.audio.labels import MID
from ajepa.audio.listing import list_names
from ajepa.audio.manifest import Manifest, make_table
from ajepa.errors import UserError


def esc50(path: str) -> Manifest:
    """ESC-50's own layout: meta/*.csv with filename, fold, target, category, and audio/. Also ESC-10."""
    storage.require_folder(path, "the ESC-50 folder")
    path = storage.absolute(path)
    files, macos = list_names(path)
    tables = [n for n in files if n.startswith("meta/") and n.endswith(".csv")]
    if len(tables) != 1:
        raise UserError(f"{path!r} is not an ESC-50 copy: expected one meta/*.csv, found {len(tables)}")
    try:
        text = storage.read_text(storage.join(path, tables[0])).removeprefix("\ufeff")  # spreadsheets' mark
        rows = list(csv.DictReader(io.StringIO(text)))
        missing = {"filename", "fold", "target", "category"} - set(rows[0] if rows else {})
        if missing:
            raise UserError(f"{tables[0]} lacks the columns {', '.join(sorted(missing))}")
        names = [name for _, name in sorted({(int(r["target"]), r["category"]) for r in rows})]
        folds = [int(r["fold"]) for r in rows]
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"cannot read {tables[0]!r} of {path!r}: {error}") from error
    files_named = [r["filename"] for r in rows]
    uris = [storage.join(path, "audio", name) for name in files_named]
    table = make_table(files_named, uris, [[r["category"]] for r in rows], names, fold=folds)
    return Manifest(table, names, tuple(macos))


def speech_commands(path: str) -> Manifest:
    """Speech Commands v2 (Warden, 2018): a folder a word, split by the corpus's own two lists; background noise is
    left out."""
    storage.require_folder(path, "the Speech Commands folder")
    path = storage.absolute(path)
    files, macos = list_names(path)
    split: dict[str, str] = {}
    for name, list_file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
        if list_file not in files:
            raise UserError(f"{path!r} is no copy of Speech Commands: it has no {list_file}")
        lines = _read_list(path, list_file).splitlines()
        split |= {line.strip(): name for line in lines if line.strip()}
    clips = [f for f in files if f.count("/") == 1 and f.endswith(".wav") and not f.startswith("_background_noise_/")]
    words = sorted({clip.partition("/")[0] for clip in clips})
    table = make_table(
        clips,
        [storage.join(path, clip) for clip in clips],
        [[clip.partition("/")[0]] for clip in clips],
        words,
        split=[split.get(clip, "train") for clip in clips],
    )
    noise = sum(f.startswith("_background_noise_/") and f.endswith(".wav") for f in files)
    remarks = [f"{noise} recordings of background noise left out"] if noise else []
    return Manifest(table, words, (*remarks, *macos), missing=tuple(sorted(set(split) - set(clips))))


SEGMENT_ROW = re.compile(r"""^\s*"?([\w-]{11})"?\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*,(.*)$""")
CLIP_NAME = re.compile(r"^Y?([\w-]{11})(?:_(\d+(?:\.\d+)?))?(?:_(\d+(?:\.\d+)?))?$")


def audioset(path: str, whole_videos: bool = False) -> Manifest:
    """AudioSet (Gemmeke et al., 2017): *segments*.csv files and class_labels_indices.csv somewhere below a folder of
    audio named ID, YID, ID_START or ID_START_END (seconds or milliseconds).

    Args:
        whole_videos: files hold whole videos' audio, to be cut at the segment's start; else they are clips already.
    """
    storage.require_folder(path, "the AudioSet folder")
    path = storage.absolute(path)
    files, macos = list_names(path)
    tables = [f for f in files if f.endswith(".csv") and "segments" in PurePosixPath(f).name]
    if not tables:
        raise UserError(f"{path!r} is no copy of AudioSet: it has no *segments*.csv")
    mids, names = _audioset_labels(path, files)
    audio: dict[str, list[tuple[float | None, str]]] = defaultdict(list)  # video id -> (start in the name, file)
    for file in files:
        match = CLIP_NAME.match(PurePosixPath(file).stem)
        if match and PurePosixPath(file).suffix.lower() in AUDIO_EXTENSIONS:
            audio[match[1]].append((None if match[2] is None else float(match[2]), file))
    columns: dict[str, list] = {k: [] for k in ("id", "uri", "labels", "start", "duration", "split")}
    missing: list[str] = []
    unreadable = 0
    for table in tables:
        split = PurePosixPath(table).name.partition("_segments")[0]
        for line in _read_list(path, table).splitlines():
            if line.startswith("#") or not line.strip():
                continue
            row = SEGMENT_ROW.match(line)
            if row is None:
                unreadable += 1
                continue
            video, start, end, rest = row[1], float(row[2]), float(row[3]), row[4]
            labels = MID.findall(rest)
            unknown = [mid for mid in labels if mid not in mids]
            if unknown:
                raise UserError(f"{table}: the label {unknown[0]} of {video} is not in class_labels_indices.csv")
            clip_id = f"{video}_{round(start * 1000)}"
            found = _file_of(audio.get(video, []), start)
            if found is None:
                missing.append(clip_id)
                continue
            values = (clip_id, storage.join(path, found), [mids[mid] for mid in labels], start, end - start, split)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    if not columns["id"]:
        raise UserError(f"{path!r} has audio of none of the {len(missing)} segments listed")
    clips = make_table(
        columns["id"], columns["uri"], columns["labels"], names, duration=columns["duration"], split=columns["split"],
        start=columns["start"] if whole_videos else None,
    )  # fmt: skip
    remarks = [f"{unreadable} lines of the segment lists could not be read"] if unreadable else []
    return Manifest(clips, names, (*remarks, *macos), tuple(sorted(missing)))


def _audioset_labels(path: str, files: list[str]) -> tuple[dict[str, str], list[str]]:
    """Display name by label id, and the names in the table's order (which makes their number the label id)."""
    tables = [f for f in files if PurePosixPath(f).name == CLASS_TABLE]
    if len(tables) != 1:
        raise UserError(f"{path!r} needs one {CLASS_TABLE}, found {len(tables)}")
    table = read_classes(storage.join(path, tables[0]))
    return dict(zip(table.mids, table.names, strict=True)), table.names


def _read_list(path: str, name: str) -> str:
    """A corpus's text file.

    Raises:
        UserError: it is not UTF-8.
    """
    where = storage.join(path, name)
    try:
        return storage.read_text(where).removeprefix("\ufeff")  # spreadsheets' mark
    except UnicodeDecodeError as error:
        raise UserError(f"{where!r} is not UTF-8 ({error}): save it as UTF-8") from error


def _file_of(candidates: list[tuple[float | None, str]], start: float) -> str | None:
    """The file of a segment among those of its video: the one with its start in the name, else one with none."""
    for named, file in candidates:
        if named is not None and (abs(named - start) < 1e-3 or abs(named - start * 1000) < 1e-3):
            return file
    return next((file for named, file in candidates if named is None), None)
