"""The table of a corpus's classes: an id, a number and a name each, as AudioSet's class_labels_indices.csv."""

import csv
import io
from collections import Counter
from dataclasses import dataclass

from ajepa import storage
from ajepa.errors import UserError

CLASS_TABLE = "class_labels_indices.csv"


@dataclass(frozen=True)
class ClassTable:
    """A corpus's own classes, in the order of their numbers, which are the label ids."""

    path: str
    mids: list[str]  # the ids by which lists name them
    names: list[str]  # what they are called


def read_classes(path: str) -> ClassTable:
    """A CSV with the columns index, mid and display_name.

    Raises:
        UserError: it is not UTF-8, has other columns, an index that is no number, or an id twice.
    """
    try:
        text = storage.read_text(path).removeprefix("\ufeff")  # spreadsheets' mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path!r} is not UTF-8 ({error}): save it as UTF-8") from error
    rows = list(csv.DictReader(io.StringIO(text)))
    missing = {"index", "mid", "display_name"} - set(rows[0] if rows else {})
    if missing:
        raise UserError(f"{path!r} lacks the columns {', '.join(sorted(missing))}")
    try:
        rows.sort(key=lambda row: int(row["index"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path!r} has an index that is no number: {error}") from error
    twice = [mid for mid, count in Counter(row["mid"] for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"{path!r} has the class {twice[0]!r} twice")
    return ClassTable(path, [row["mid"] for row in rows], [row["display_name"] for row in rows])
