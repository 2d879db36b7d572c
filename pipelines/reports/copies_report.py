"""Copies and silent clips of a dataset, for people: lines, tables that list them, and a section of the report."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from ajepa.evaluation.tables import escape
from ajepa.shards.duplicates import Findings
from ajepa.shards.schema import BAD

DUPLICATES_CSV, SILENT_CSV = "duplicates.csv", "silent.csv"


def notes(found: Findings, folder: str = "") -> list[str]:
    """A line on copies and one on silent clips, where there are any.

    Args:
        folder: before the names of the tables, "report/".
    """
    lines = []
    if found.copies:
        dropped = sum(not copy.shard for copy in found.copies)
        elsewhere = f"; {found.elsewhere} of them in another split or fold than the clip they copy"
        lines.append(
            f"{_clips(len(found.copies), 'copies of others', 'a copy of another')} (identical log-mel)"
            f"{_dropped(dropped)}{elsewhere if found.elsewhere else ''}, listed in {folder}{DUPLICATES_CSV}"
        )
    silent = len(found.silent) + len(found.dropped_silent)
    if silent:
        dropped = len(found.dropped_silent)
        lines.append(f"{_clips(silent, 'silent', 'silent')}{_dropped(dropped)}, listed in {folder}{SILENT_CSV}")
    return lines


def _clips(count: int, several: str, one: str) -> str:
    return f"1 clip is {one}" if count == 1 else f"{count} clips are {several}"


def _dropped(count: int) -> str:
    return f", {count} of them moved to {BAD}" if count else ""


def section(found: Findings) -> list[str]:
    """Parts of report.md; none where there is nothing to say."""
    lines = notes(found)
    return ["## Copies and silence", "\n".join(f"- {escape(line)}" for line in lines)] if lines else []


def write_lists(found: Findings, folder: Path) -> list[Path]:
    """The tables that `notes` names; their paths."""
    paths = []
    if found.copies:
        head = ("clip_id", "split", "fold", "copy_of", "copy_of_split", "copy_of_fold", "elsewhere", "status")
        rows = [
            (c.clip_id, c.split, c.fold, c.copy_of, c.copy_of_split, c.copy_of_fold, c.elsewhere, _status(c.shard))
            for c in found.copies
        ]
        paths.append(_write(folder / DUPLICATES_CSV, head, rows))
    if found.silent or found.dropped_silent:
        silent = [(name, _status(True)) for name in found.silent]
        silent += [(name, _status(False)) for name in found.dropped_silent]
        paths.append(_write(folder / SILENT_CSV, ("clip_id", "status"), silent))
    return paths


def _status(kept: object) -> str:
    return "ok" if kept else "bad"


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path
