"""Rows of JSON as columns of Arrow. What one column holds in two types is remembered, and refused only if it is needed:
lists carry much that nobody reads."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ajepa.errors import UserError

NO_COLUMN = ""  # of a block that has rows all the same


class Rows:
    """Gathers blocks of rows, each with its own columns, into one table.

    Args:
        path: the list, for messages.
        where: what a row's number counts, "line" or "entry".
    """

    def __init__(self, path: str, where: str) -> None:
        self._path, self._where = path, where
        self._blocks: list[pa.Table] = []
        self._types: dict[str, pa.DataType] = {}
        self._mixed: dict[str, str] = {}  # columns of two types, and where the second is

    @property
    def names(self) -> list[str]:
        """Of all columns; of the fields of objects in them as "outer.inner"."""
        return [*self._types, *(name for name in self._mixed if name not in self._types)]

    @property
    def empty(self) -> bool:
        return not self._blocks

    @property
    def texts(self) -> pa.Schema:
        """The columns known to be texts: one that looks like a date is a text as well."""
        return pa.schema([(name, kind) for name, kind in self._types.items() if pa.types.is_string(kind)])

    def add(self, block: pa.Table, first: int) -> None:
        """Add a block whose first row has the number `first`."""
        block = _flat(block)
        kept = {}
        for name, column in zip(block.column_names, block.columns, strict=True):
            if name == NO_COLUMN:
                continue
            known = self._types.get(name, pa.null())
            try:
                merged = pa.unify_schemas(
                    [pa.schema([(name, known)]), pa.schema([(name, column.type)])], promote_options="permissive"
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                self._mixed.setdefault(name, f"{known} before {self._where} {first} and {column.type} after it")
                continue
            self._types[name] = merged.field(0).type
            kept[name] = column
        self._blocks.append(pa.table(kept) if kept else _no_columns(block.num_rows))

    def add_objects(self, objects: Sequence[dict[str, Any]], numbers: Sequence[int]) -> None:
        """Add rows one by one, each with its number; slower than `add`, and for types that Arrow's reader refuses."""
        columns: dict[str, pa.Array] = {}
        for name in dict.fromkeys(name for row in objects for name in row):
            values = [row.get(name) for row in objects]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError):
                self._mixed.setdefault(name, self._change(values, numbers))
        if objects:
            self.add(pa.table(columns) if columns else _no_columns(len(objects)), numbers[0])

    def _change(self, values: Sequence[Any], numbers: Sequence[int]) -> str:
        """Where the type of a column changes."""
        first: str | None = None
        for value, number in zip(values, numbers, strict=True):
            kind = _kind(value)
            if kind is not None and first is not None and kind != first:
                return f"a {first} and, in {self._where} {number}, a {kind}"
            first = first or kind
        return f"values that are no column (near {self._where} {numbers[0]})"

    def read(self, columns: Sequence[str]) -> pa.Table:
        """These columns of all rows.

        Raises:
            UserError: one of them has two types.
        """
        for name in columns:
            if name in self._mixed:
                raise UserError(
                    f"the column {name!r} of the manifest {self._path!r} holds {self._mixed[name]}: make it one type"
                )
        chunks: dict[str, list[pa.Array]] = {name: [] for name in columns}
        for block in self._blocks:
            for name in columns:
                kind = self._types[name]
                found = block[name].cast(kind, safe=False) if name in block.column_names else None
                chunks[name] += found.chunks if found is not None else [pa.nulls(block.num_rows, kind)]
        return pa.table({name: pa.chunked_array(parts, self._types[name]) for name, parts in chunks.items()})


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its fields.

    Raises:
        ValueError: it has one twice, or one whose name is no text in UTF-8.
    """
    found = dict(pairs)
    "".join(found).encode()
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _no_columns(rows: int) -> pa.Table:
    return pa.table({NO_COLUMN: pa.nulls(rows)})


def _kind(value: Any) -> str | None:
    names = {bool: "truth value", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return names.get(type(value))


def _flat(table: pa.Table) -> pa.Table:
    """The fields of objects as columns "outer.inner", one level deep."""
    return table.flatten() if any(pa.types.is_struct(field.type) for field in table.schema) else table
