"""JSON Lines: an object a line, as NeMo, OpenBEATs and audio folders have it."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from ajepa.audio.lists.rows import Rows, unique_fields
from ajepa.audio.lists.text import line_blocks
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

DEPTH = 200  # objects and lists in one line; Arrow's reader crashes at some ten thousands in each other


def read_json_lines(path: str) -> UserList:
    """A list of one object a line; fields of an object in it are columns "outer.inner".

    Raises:
        UserError: a line is no JSON object, or names a field twice.
    """
    rows = Rows(path, "line")
    for number, block in line_blocks(path):
        table = _parse(block, rows.texts)
        if table is not None:
            rows.add(table, number)
            continue
        numbered = list(numbered_objects(path, number, block))
        rows.add_objects([row for _, row in numbered], [line for line, _ in numbered])
    return UserList(rows.names, rows.read)


def objects(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of a list, one after the other.

    Raises:
        UserError: as `read_json_lines`.
    """
    for number, block in line_blocks(path):
        yield from numbered_objects(path, number, block)


def numbered_objects(path: str, first: int, block: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of whole lines, the first of which has the number `first`."""
    for number, line in enumerate(block.split(b"\n"), first):
        if not line.strip():
            continue
        what = f"line {number} of the manifest {path!r}"
        try:
            found = json.loads(line, object_pairs_hook=unique_fields)
        except json.JSONDecodeError as error:
            cut = "" if block.endswith(b"\n") or number < first + block.count(b"\n") else " (is the file cut there?)"
            raise UserError(f"{what} is no JSON object: {error.msg} at column {error.colno}{cut}") from error
        except RecursionError as error:
            raise UserError(f"{what} is nested too deep") from error
        except ValueError as error:
            raise UserError(f"{what} is no JSON object: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f'{what} is a {type(found).__name__}, not an object as {{"audio_filepath": ...}}')
        yield number, found


def _parse(block: bytes, texts: pa.Schema) -> pa.Table | None:
    """The lines by Arrow's reader; None where it does not take them, which then are read one by one."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if block.count(b"{") + block.count(b"[") > lines + DEPTH and _most_openings(block) > DEPTH:
        return None
    try:
        table = _parse_as(block, texts)
        as_texts = pa.schema([_as_text(field) for field in table.schema])
        if not as_texts.equals(table.schema):
            table = _parse_as(block, as_texts)
    except pa.ArrowException:
        return None
    # Where two objects stand in a line, or a line is empty, the numbers of lines are needed.
    return table if table.num_rows == lines else None


def _parse_as(block: bytes, schema: pa.Schema) -> pa.Table:
    options = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    known = pa.json.ParseOptions(explicit_schema=schema if len(schema) else None)
    return pa.json.read_json(pa.BufferReader(block), options, known)


def _most_openings(block: bytes) -> int:
    """Brackets that a line opens at most."""
    letters = np.frombuffer(block, np.uint8)
    openings = np.flatnonzero((letters == ord("{")) | (letters == ord("[")))
    line = np.searchsorted(np.flatnonzero(letters == ord("\n")), openings)
    return int(np.bincount(line).max(initial=0))


def _as_text(field: pa.Field) -> pa.Field:
    return field.with_type(_text_type(field.type))


def _text_type(kind: pa.DataType) -> pa.DataType:
    """The type with texts where Arrow saw dates."""
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_text_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([_as_text(kind.field(i)) for i in range(kind.num_fields)])
    return kind
