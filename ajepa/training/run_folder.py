"""history.jsonl of a run: a line a report, so that curves can be drawn without MLflow."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ajepa import storage

HISTORY = "history.jsonl"
TAIL = "history-tail.jsonl"  # beside it in an object store, which cannot append: reports that are not in it yet


def append_history(output: str, reports: Sequence[dict[str, Any]]) -> None:
    """Add reports. An object store cannot append: there the file is written anew."""
    where = storage.join(output, HISTORY)
    lines = "".join(json.dumps(report) + "\n" for report in reports)
    if not storage.is_uri(output):
        with Path(where).open("ab+") as file:
            if file.tell():  # the end of a line torn by a crash
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode())
    else:
        old = storage.read_text(where) if storage.path_type(where) == "file" else ""
        storage.write_text(where, old + lines)


def read_lines(path: str) -> list[dict[str, Any]]:
    """All reports of a history file as they were written, without lines torn by a crash or overwritten."""
    with storage.open_input(path) as stream:
        return _parsed(stream.read())


def read_new_lines(path: str, place: int) -> tuple[list[dict[str, Any]], int]:
    """The reports of a history file from byte `place` on, and the end of its last whole line, to go on from."""
    with storage.open_input(path) as stream:
        stream.seek(min(place, stream.size()))
        new = stream.read()
    whole = new[: new.rfind(b"\n") + 1]
    return _parsed(whole), place + len(whole)


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    reports = []
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):
            report = json.loads(line)
            if isinstance(report, dict) and isinstance(report.get("step"), int):
                reports.append(report)
    return reports


def read_history(output: str) -> list[dict[str, Any]]:
    """The reports of a run in order of steps, [] where there are none; steps replayed after a crash count once, as
    replayed."""
    reports: list[dict[str, Any]] = []
    paths = [storage.join(output, name) for name in (HISTORY, TAIL)]
    for report in (r for path in paths if storage.path_type(path) == "file" for r in read_lines(path)):
        while reports and reports[-1]["step"] >= report["step"]:
            reports.pop()
        reports.append(report)
    return reports
