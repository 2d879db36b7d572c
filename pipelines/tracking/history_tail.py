"""The history of a training in an object store, which cannot append. The newest reports are kept in a small file of
their own, which is written anew with each of them. Now and then they are moved into the history, which is large."""

import json
from collections.abc import Iterable
from typing import Any

from ajepa import storage
from ajepa.training.run_folder import HISTORY, TAIL, read_lines

MOST = 100  # reports in it
SHARE = 0.02  # of the history, below which the tail is not moved: the history is then written anew as a whole


def is_due(tail: int, history: int, measured: bool) -> bool:
    """Whether a tail of so many reports is moved to a history of so many: after an evaluation, if it is no small part
    of it, so that a long run does not write its whole history with every one."""
    return tail >= MOST or (measured and tail >= SHARE * history)


def read_tail(folder: str) -> list[dict[str, Any]]:
    """The reports that a process before this one left there."""
    where = storage.join(folder, TAIL)
    return read_lines(where) if storage.path_type(where) == "file" else []


def write_tail(folder: str, reports: Iterable[dict[str, Any]]) -> None:
    storage.write_text(storage.join(folder, TAIL), "".join(json.dumps(report) + "\n" for report in reports))


def move_to_history(folder: str, reports: Iterable[dict[str, Any]]) -> int:
    """Add the reports to the history, then delete the tail; the lines that the history then has. Reports that are in
    the history stay there once: a process that was killed between the two left the tail as well."""
    where = storage.join(folder, HISTORY)
    old = storage.read_text(where) if storage.path_type(where) == "file" else ""
    there = set(old.splitlines())
    new = [line for line in map(json.dumps, reports) if line not in there]
    if new:
        storage.write_text(where, old + "".join(f"{line}\n" for line in new))
    storage.delete(storage.join(folder, TAIL))
    return len(there) + len(new)


def complete_histories(output: str) -> None:
    """Move what tails there are into their histories. For when nobody else writes to the output."""
    if not storage.is_uri(output):
        return
    for name in sorted(storage.contents(output)):
        folder, _, file = name.rpartition("/")
        if file == TAIL:
            where = storage.join(output, folder) if folder else output
            move_to_history(where, read_tail(where))
