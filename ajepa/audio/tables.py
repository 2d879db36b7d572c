"""Lists of sounds as people hold them, as manifests: their columns become those of the contract, or are refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ajepa.audio.columns import END, Columns, listed, match_columns
from ajepa.audio.labels import label_ids
from ajepa.audio.lists.formats import find_list, open_list
from ajepa.audio.lists.user_list import UserList
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.audio.places import locate
from ajepa.errors import UserError

NOTHING = pa.array(pa.csv.ConvertOptions().null_values)  # texts that stand for no number, as "NA"
DEFAULTS = {"start_s": 0.0, "split": "", "fold": -1}  # of empty cells


def read_table(path: str, chosen: Mapping[str, str] | None = None) -> Manifest:
    """A list of clips: CSV (also with tabs or semicolons), Parquet, JSON Lines (also .gz), lhotse's recordings or cuts,
    Kaldi's wav.scp or its folder, or AST's JSON.

    It needs a column for the sound files; for ids, times in seconds, labels, split and fold it may have one. Several
    labels are a list, or one text separated by ";" (by "," where ";" separates columns, and in AST's JSON). Relative
    paths start at the list's folder. Without ids a clip is called by its path, and pieces of one file by their times
    as well.

    Args:
        chosen: which column stands for which of ours, from `columns.parse_columns`; others are known by their names.

    Raises:
        UserError: no such list, it is damaged, a column means something that cannot be read, or no file exists.
    """
    path = find_list(path)
    found = open_list(path)
    columns = match_columns(found.names, chosen or {}, path)
    table = found.read(list(dict.fromkeys(columns.taken.values())))
    if not table.num_rows:
        return Manifest(MANIFEST_SCHEMA.empty_table(), [])
    theirs = {ours: table[name] for ours, name in columns.taken.items()}
    written = _texts(theirs["uri"], columns.taken["uri"], path)
    _require_filled(written, "uri", path)
    ready: dict[str, Any] = {}
    ready["labels"], names = _labels(theirs.get("labels"), table.num_rows, found, columns, path)
    time_remarks = _add_times(ready, theirs, found, columns, path)
    if "split" in theirs:
        ready["split"] = _texts(theirs["split"], columns.taken["split"], path)
    if "fold" in theirs:
        ready["fold"] = _whole(_numbers(theirs["fold"], columns.taken["fold"], found, path), columns, path)
    ready["clip_id"], id_remarks = _ids(theirs.get("clip_id"), written, ready, columns, path)
    ready["uri"], place_remarks = locate(written, path)
    remarks = [*found.remarks, *columns.remarks, *id_remarks, *time_remarks, *place_remarks]
    if columns.left_out:
        remarks.append(f"columns of the manifest left out: {listed(sorted(columns.left_out))}")
    return Manifest(_in_schema(ready, table.num_rows), names, tuple(remarks), found.missing)


def _in_schema(ready: Mapping[str, Any], rows: int) -> pa.Table:
    """The columns in the order of the contract; one that the list has not is empty."""
    filled = {}
    for field in MANIFEST_SCHEMA:
        column = ready[field.name].cast(field.type) if field.name in ready else pa.nulls(rows, field.type)
        filled[field.name] = pc.fill_null(column, DEFAULTS[field.name]) if field.name in DEFAULTS else column
    return pa.table(filled, schema=MANIFEST_SCHEMA)


def _wrong(name: str, path: str, why: str) -> UserError:
    return UserError(f"the manifest {path!r} has a column of the wrong type, {name!r}: {why}")


def _texts(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise _wrong(name, path, f"it holds {kind}, not texts")
    texts = column.cast(pa.string())
    row = pc.index(pc.match_substring(texts, "\n"), True).as_py() + 1
    if row:
        raise UserError(f"row {row} of the manifest {path!r} has {name!r} over two lines: is a quote not closed?")
    return texts


def _numbers(column: pa.ChunkedArray, name: str, found: UserList, path: str) -> pa.ChunkedArray:
    """As float64, null where nothing stands."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        if found.decimal_comma:
            texts = pc.replace_substring(texts, ",", ".")
        texts = pc.if_else(pc.is_in(texts, value_set=NOTHING), None, texts)
        try:
            return texts.cast(pa.float64())
        except pa.ArrowInvalid as error:
            value = str(error).partition("'")[2].rpartition("'")[0]
            raise _wrong(name, path, f"{value!r} in row {pc.index(texts, value).as_py() + 1} is no number") from error
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    if not any(check(kind) for check in checks):
        raise _wrong(name, path, f"it holds {kind}, not numbers")
    return column.cast(pa.float64(), safe=False)


def _whole(numbers: pa.ChunkedArray, columns: Columns, path: str) -> pa.ChunkedArray:
    try:
        return numbers.cast(pa.int32())
    except pa.ArrowInvalid as error:
        raise _wrong(columns.taken["fold"], path, f"it holds {str(error).splitlines()[0]}") from error


def _add_times(
    ready: dict[str, Any], theirs: Mapping[str, pa.ChunkedArray], found: UserList, columns: Columns, path: str
) -> list[str]:
    """Put the start and duration of each clip in place; a remark on rows that end before they start.

    Raises:
        UserError: a time is no number, or all rows end before they start.
    """
    times = {
        ours: _numbers(theirs[ours], columns.taken[ours], found, path)
        for ours in ("start_s", "duration_s", END) if ours in theirs
    }  # fmt: skip
    if "start_s" in times:
        ready["start_s"] = times["start_s"]
    if END in times:
        start = pc.fill_null(times["start_s"], 0.0) if "start_s" in times else 0.0
        times["duration_s"] = pc.subtract(times[END], start)
    if "duration_s" in times:
        ready["duration_s"] = times["duration_s"]
    wrong = np.zeros(len(theirs["uri"]), bool)
    for column, compare in (("duration_s", pc.less_equal), ("start_s", pc.less)):
        if column in ready:
            wrong |= pc.fill_null(compare(ready[column], 0.0), False).to_numpy()
    if not wrong.any():
        return []
    row = int(wrong.argmax())
    start, length = (ready[name][row].as_py() if name in ready else None for name in ("start_s", "duration_s"))
    said = f"row {row + 1} starts at {start or 0:g} s" + ("" if length is None else f" and lasts {length:g} s")
    if wrong.all():
        raise UserError(f"no row of the manifest {path!r} is a piece of its file: {said}")
    return [f"rows of the manifest that are no piece of their file and become bad rows: {wrong.sum()} ({said})"]


def _require_filled(column: pa.ChunkedArray, name: str, path: str) -> None:
    missing = _count_missing(column)
    if missing:
        raise UserError(f"the manifest {path!r} has {missing} row{'s' * (missing > 1)} without a {name}")


def _count_missing(column: pa.ChunkedArray) -> int:
    """Nulls, and empty or blank texts: a CSV has no nulls."""
    texts = pc.utf8_trim_whitespace(pc.fill_null(column, ""))
    return int(pc.sum(pc.equal(texts, "")).as_py() or 0)


def _ids(
    given: pa.ChunkedArray | None, written: pa.ChunkedArray, ready: Mapping[str, Any], columns: Columns, path: str
) -> tuple[Any, list[str]]:
    """The names of the clips: those given, or else their uris, of pieces of one file with their times, as
    "a.wav@1.5-2". A column that was only taken for ids must have one for each clip, or is left alone."""
    if given is not None:
        name = columns.taken["clip_id"]
        ids = _texts(given, name, path)
        if "clip_id" not in columns.guessed:
            _require_filled(ids, "clip_id", path)
            return ids, []
        if not _count_missing(ids) and pc.count_distinct(ids).as_py() == len(ids):
            return ids, []
        remarks = [f"column {name!r} does not name every clip by itself: clips are called by their files"]
    else:
        remarks = []
    counts = pc.value_counts(written)
    often = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(often):
        return written, remarks
    nothing = pa.nulls(len(written), pa.float64())
    again = pc.is_in(written, value_set=often)
    pieces = zip(
        written.filter(again).to_pylist(),
        ready.get("start_s", nothing).filter(again).to_pylist(),
        ready.get("duration_s", nothing).filter(again).to_pylist(),
        strict=True,
    )
    named = pa.array([
        f"{name}@{start or 0:.10g}-{'' if length is None else f'{(start or 0) + length:.10g}'}"
        for name, start, length in pieces
    ], pa.string())  # fmt: skip
    return pc.replace_with_mask(written.combine_chunks(), again.combine_chunks(), named), remarks


def _labels(
    column: pa.ChunkedArray | None, rows: int, found: UserList, columns: Columns, path: str
) -> tuple[pa.Array, list[str]]:
    """Lists of label ids, and the names in the order of their ids.

    Raises:
        UserError: the column holds no labels, or one that its table of classes has not.
    """
    if column is None:
        return label_ids(pa.nulls(rows, pa.string()))
    if pa.types.is_string(column.type):
        column = _texts(column, columns.taken["labels"], path)
    known = found.classes
    try:
        if known is not None:
            return label_ids(column, known.mids, found.label_separator, known.path)[0], known.names
        return label_ids(column, None, found.label_separator)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _wrong(columns.taken["labels"], path, str(error).splitlines()[0]) from error
