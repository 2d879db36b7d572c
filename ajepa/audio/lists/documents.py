"""One JSON document of all entries: `{"data": [...]}` of AST, SSAST and AudioMAE, or a plain array of objects."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ajepa import storage
from ajepa.audio.class_table import CLASS_TABLE, ClassTable, read_classes
from ajepa.audio.lists.rows import Rows, unique_fields
from ajepa.audio.lists.text import LONGEST, pieces
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

AST = re.compile(r'\s*\{\s*"data"\s*:\s*\[')
ARRAY = re.compile(r"\s*\[")
BETWEEN = re.compile(r"[\s,]*")
ENTRIES = 1 << 16  # made into columns at a time


def read_document(path: str) -> UserList:
    """A list of entries in one JSON document. Labels of AST's are ids, separated by commas; where its table of classes
    lies beside it, they are called by their display names, and are numbered in its order.

    Raises:
        UserError: it is damaged, an entry is no object, or the table of classes is damaged.
    """
    rows = Rows(path, "entry")
    found = entries(path)
    while block := list(islice(found, ENTRIES)):
        rows.add_objects([entry for _, entry in block], [number for number, _ in block])
    if rows.empty:
        raise UserError(f"the manifest {path!r} is empty: it has no entry")
    if not is_ast(next(_texts(path), "")):
        return UserList(rows.names, rows.read)
    classes = _classes_beside(path)
    if classes is not None:
        remarks = (f"labels are called and numbered as in {classes.path}",)
    else:
        remarks = (f"no {CLASS_TABLE} lies beside the manifest: labels are called by their ids",)
    return UserList(rows.names, rows.read, label_separator=",", classes=classes, remarks=remarks)


def is_ast(head: str) -> bool:
    return AST.match(head) is not None


def entries(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, entry), each read on its own.

    Raises:
        UserError: as `read_document`.
    """
    decoder = json.JSONDecoder(object_pairs_hook=unique_fields)
    texts = _texts(path)
    text = next(texts, "")
    start = AST.match(text) or ARRAY.match(text)
    assert start is not None
    at, number = start.end(), 1
    while True:
        between = BETWEEN.match(text, at)
        assert between is not None  # it matches nothing as well
        at = between.end()
        if text.startswith("]", at):
            return
        what = f"entry {number} of the manifest {path!r}"
        try:
            entry, end = decoder.raw_decode(text, at)
        except RecursionError as error:
            raise UserError(f"{what} is nested too deep") from error
        except json.JSONDecodeError as error:
            # It may go on in the next piece.
            more = next(texts, "") if len(text) - at <= LONGEST else ""
            if not more:
                cut = "" if text.rstrip().endswith(("}", "]")) else " (the file is cut there)"
                raise UserError(f"{what} is no JSON: {error.msg}{cut}") from error
            text, at = text[at:] + more, 0
            continue
        except ValueError as error:
            raise UserError(f"{what} is no JSON: {error}") from error
        if not isinstance(entry, dict):
            raise UserError(f'{what} is a {type(entry).__name__}, not an object as {{"wav": ..., "labels": ...}}')
        yield number, entry
        at, number = end, number + 1


def _texts(path: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    return (decoder.decode(piece) for piece in pieces(path))


def _classes_beside(path: str) -> ClassTable | None:
    folder = path.rpartition("/")[0]
    names = [CLASS_TABLE]
    if storage.path_type(storage.join(folder, CLASS_TABLE)) != "file":  # AST's for other corpora than AudioSet
        names = [name for name, _ in storage.list_folder(folder) if name.endswith(CLASS_TABLE)]
    if len(names) > 1:
        raise UserError(f"{folder!r} holds {', '.join(names)}: call the one of {path!r} {CLASS_TABLE}")
    return read_classes(storage.join(folder, names[0])) if names else None
