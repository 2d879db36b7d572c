"""Tables as text: CSV, and the same with tabs or semicolons. The first line names the columns."""

import csv
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ajepa.audio.lists.text import TextStream, head
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}


def read_delimited(path: str) -> UserList:
    """A table whose first line says with what its columns are separated. All its cells are texts.

    Several labels in one cell are separated by ";", and by "," where that separates no columns but ";" does.

    Raises:
        UserError: it is no text, or empty.
    """
    text = head(path)
    separator, names = _header(text, path)
    remarks = (f"columns of the manifest are separated by {SEPARATORS[separator]}",) if separator != "," else ()
    # After "uri, labels" the blank belongs to no cell.
    blanks = any(name.startswith(" ") for name in names[1:])
    return UserList(
        names,
        lambda columns: _trimmed(_read(path, separator, columns), blanks),
        label_separator="," if separator == ";" else ";",
        decimal_comma=separator == ";",
        remarks=remarks,
    )


def _header(text: str, path: str) -> tuple[str, list[str]]:
    """The separator that gives the first line the most columns, and their names."""
    found = {}
    for separator in SEPARATORS:
        try:
            found[separator] = next(csv.reader(io.StringIO(text, newline=None), delimiter=separator), [])
        except csv.Error as error:
            raise UserError(f"cannot read the manifest {path!r}: {error} in its first line") from error
    separator = max(found, key=lambda each: len(found[each]))
    if not any(name.strip() for name in found[separator]):
        raise UserError(f"the manifest {path!r} is empty: its first line must name the columns")
    return separator, found[separator]


def _read(path: str, separator: str, columns: Sequence[str]) -> pa.Table:
    """Where tabs separate columns, a quote may be a letter like any other: it is one where taking it as a quote would
    join lines, or cannot be."""
    if separator != "\t":
        return _parse(path, TextStream(path), separator, columns, quotes=True)
    plain: pa.Table | None = None
    try:
        stream = TextStream(path)
        plain = _parse(path, stream, separator, columns, quotes=False)
        quoted = _parse(path, TextStream(path), separator, columns, quotes=True) if stream.has_quotes else plain
    except UserError:
        if plain is None:
            return _parse(path, TextStream(path), separator, columns, quotes=True)
        return plain
    return quoted if quoted.num_rows == plain.num_rows else plain


def _parse(path: str, stream: TextStream, separator: str, columns: Sequence[str], *, quotes: bool) -> pa.Table:
    try:
        return pa.csv.read_csv(
            pa.PythonFile(stream, mode="r"),
            # One thread: two million rows take a second, and a process that ends at once was aborted by Arrow's own.
            pa.csv.ReadOptions(use_threads=False),
            pa.csv.ParseOptions(delimiter=separator, quote_char='"' if quotes else False, newlines_in_values=quotes),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns),
                strings_can_be_null=False,
            ),
        )  # fmt: skip
    except pa.ArrowException as error:
        raise UserError(f"cannot read the manifest {path!r}: {str(error).splitlines()[0]}") from error


def _trimmed(table: pa.Table, blanks: bool) -> pa.Table:
    if not blanks:
        return table
    columns = [pc.utf8_trim_whitespace(column) for column in table.columns]
    return pa.table(dict(zip(table.column_names, columns, strict=True)))
