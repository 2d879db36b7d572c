"""Clips in the rows of Parquet files, as the Hugging Face Hub holds them. Planning reads footers, names and labels, no
sound."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.archives.files import find_files
from ajepa.audio.archives.parquet_columns import Columns, class_names, find_columns, holds_sound, parts_of
from ajepa.audio.archives.parquet_rows import beside
from ajepa.audio.archives.splits import split_of
from ajepa.audio.blocks import MOST_PIECES, ROWS_TOGETHER
from ajepa.audio.labels import MID, class_table_near, label_ids, named_mids
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest, in_reading_order, locators
from ajepa.errors import UserError, one_line

AT_ONCE = 16  # files that are read
T = TypeVar("T")
ROWS_A_PAGE = 1024  # at least, of Arrow's writer
MOST_PAGE = 1_200_000_000  # bytes; with pages of 1.07 GB a worker was measured at 1.1 GB, with 2.1 GB at 3.1 GB
PATH = "sound path"  # a column of ours
ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True)
class _File:
    """What planning knows of a file."""

    name: str  # below the input
    small: pa.Table  # columns of `Columns.small`, and "path" of the sound where there is one
    groups: list[int]  # rows of each row group
    with_bytes: list[bool]  # whether a row group may hold any


def parquet(path: str, columns: Mapping[str, str]) -> Manifest:
    """List the rows of Parquet files.

    Args:
        path: a file, a folder or a pattern; local or a URI.
        columns: names that the user gave, see `find_columns`.

    Raises:
        UserError: no such files, damaged ones, other columns in some, columns of the wrong type, or a label that is not
            in AudioSet's class table, where there is one.
    """
    folder, names = find_files(path, ENDINGS, "Parquet files")
    first = _schema(storage.join(folder, names[0]))
    chosen = find_columns(first, columns, storage.join(folder, names[0]))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        files = list(pool.map(lambda name: _read(folder, name, chosen, first), names))
    files = [file for file in files if sum(file.groups)]
    if not files:
        raise UserError(f"the Parquet files of {path!r} have no rows")
    small = pa.concat_tables([file.small for file in files]).combine_chunks()
    labels, label_names, remarks = _labels(small, chosen, storage.join(folder, names[0]))
    rows = small.num_rows
    places = _places(folder, files, chosen)
    ids, ids_are_places, remark = _ids(small, chosen, files)
    split = _texts(small[chosen.split]) if chosen.split else _file_splits(files)
    fold = pc.fill_null(_cast(small[chosen.fold], pa.int32(), chosen.fold), -1) if chosen.fold else pa.nulls(rows)
    given = {
        "clip_id": ids, "uri": places["uri"], "start_s": pa.array(np.zeros(rows)), "labels": labels,
        "duration_s": pa.nulls(rows, pa.float64()), "split": split,
        "fold": fold if chosen.fold else pa.array(np.full(rows, -1, np.int32)), "locator": places["locator"],
    }  # fmt: skip
    clips = pa.table([given[field.name] for field in MANIFEST_SCHEMA], schema=MANIFEST_SCHEMA)
    found = Counter(dict(zip(*_counts(split), strict=True))) if not chosen.split else {}
    if found.keys() - {""}:
        named = ", ".join(f"{name or 'none'} ({count:,})" for name, count in sorted(found.items()))
        remarks.append(f"splits from the names of files: {named}")
    most = max(max(file.groups) for file in files)
    if most > ROWS_TOGETHER:
        remarks.append(
            f"row groups of up to {most:,} rows are read up to {MOST_PIECES} times; up to {ROWS_TOGETHER:,} once"
        )
    found_remarks = (chosen.remark(), *remark, *remarks)
    return Manifest(in_reading_order(clips), label_names, found_remarks, ids_are_places=ids_are_places)


def _schema(where: str) -> pa.Schema:
    def read() -> pa.Schema:
        with storage.open_input(where) as stream:
            return _parquet(stream, where).schema_arrow

    return _naming(where, read)


def _parquet(stream: Any, where: str) -> pq.ParquetFile:
    if stream.read(8) == b"version ":
        raise UserError(f"{where!r} is a pointer of Git LFS, not the file: get it with `git lfs pull`")
    return pq.ParquetFile(stream, pre_buffer=False)


def _naming(where: str, read: Callable[[], T]) -> T:
    """Read from a file, with its name in what is raised."""
    try:
        return storage.with_retries(where, read)
    except (storage.UnreachableError, UserError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{where!r} cannot be read as Parquet ({one_line(error)[:150]}): restore it, or move it out of the folder"
        ) from error


def _read(folder: str, name: str, columns: Columns, first: pa.Schema) -> _File:
    """What planning needs of a file, in one opening.

    Raises:
        UserError: it is damaged, or its columns are not those of the first file.
    """
    where = storage.join(folder, name)

    def read() -> _File:
        with storage.open_input(where) as stream:
            parquet = _parquet(stream, where)
            _require_alike(where, columns, parquet.schema_arrow, first)
            content, path = parts_of(parquet.schema_arrow.field(columns.audio).type, columns.audio)
            table = parquet.read([*columns.small, *([path] if path else [])], use_threads=False)
            table.validate(full=True)  # texts that are not UTF-8
            paths = pa.nulls(table.num_rows, pa.string())
            if path:
                paths = pc.struct_field(table[columns.audio], "path") if path != columns.audio else table[path]
            groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
            if content and str(parquet.metadata.created_by).startswith("parquet-cpp"):
                for group in groups:
                    _refuse_large_page(where, group, content)
        return _File(
            name,
            pa.table({name: _plain(table[name]) for name in columns.small} | {PATH: _plain(paths.cast(pa.string()))}),
            [group.num_rows for group in groups],
            [bool(content) and _holds(group, content) for group in groups],
        )

    return _naming(where, read)


def _refuse_large_page(where: str, group: pq.RowGroupMetaData, leaf: str) -> None:
    """Arrow's writer ends a page no sooner than after 1,024 rows, and its reader holds a whole page."""
    size = next((c.total_uncompressed_size for c in _chunks(group) if c.path_in_schema == leaf), 0)
    page = size * min(1.0, ROWS_A_PAGE / max(1, group.num_rows))
    if page > MOST_PAGE:
        raise UserError(
            f"{where!r} has {group.num_rows:,} rows of {size / max(1, group.num_rows) / 1e6:.1f} MB in a row group, in "
            f"pages of {page / 1e9:.1f} GB, which a worker would have to hold: write it again with row_group_size="
            f"{max(1, int(group.num_rows * 1e8 / size))}"
        )


def _chunks(group: pq.RowGroupMetaData) -> list[pq.ColumnChunkMetaData]:
    return [group.column(i) for i in range(group.num_columns)]


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Categories of pandas as what they stand for."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _require_alike(where: str, columns: Columns, schema: pa.Schema, first: pa.Schema) -> None:
    for column in (columns.audio, *columns.small):
        if column not in schema.names:
            raise UserError(f"{where!r} has no column {column!r}, which the first file has: give files of one kind")
        ours, theirs = schema.field(column).type, first.field(column).type
        if ours != theirs and not (column == columns.audio and holds_sound(ours)):
            raise UserError(f"the column {column!r} of {where!r} is {ours}, in the first file {theirs}")
    if columns.labels and class_names(schema, columns.labels) != columns.class_names:
        raise UserError(
            f"the labels of {where!r} are numbers of other classes than in the first file: make each a dataset of its "
            "own, and join them with --merge, which goes by the names"
        )


def _holds(group: pq.RowGroupMetaData, leaf: str) -> bool:
    """Whether a column of a row group may have a value; where its statistics do not tell it may."""
    chunk = next((c for c in _chunks(group) if c.path_in_schema == leaf), None)
    if chunk is None:
        return False
    counted = chunk.is_stats_set and chunk.statistics.has_null_count
    return not (counted and chunk.statistics.null_count == group.num_rows)


def _places(folder: str, files: list[_File], columns: Columns) -> dict[str, pa.Array]:
    """uri and locator of each row; where a row group holds no bytes, the files that its paths name."""
    uris, parts = [], []
    for file in files:
        where, paths, first = storage.join(folder, file.name), file.small[PATH], 0
        for number, (rows, has_bytes) in enumerate(zip(file.groups, file.with_bytes, strict=True)):
            if has_bytes:
                uris.append(pa.array([where]).take(pa.array(np.zeros(rows, np.int8))))
                parts.append(locators("parquet", rows, row_group=np.full(rows, number, np.int32), row=np.arange(rows),
                                      name=[columns.audio] * rows))  # fmt: skip
            else:
                named = paths.slice(first, rows).to_pylist()
                uris.append(pa.array([beside(where, name) if name else where for name in named], pa.string()))
                missing = pa.array([None if name else "neither bytes nor a path in this row" for name in named])
                nothing = locators("unreadable", rows, name=missing)
                parts.append(pc.if_else(missing.is_valid(), nothing, pa.nulls(rows, nothing.type)))
            first += rows
    return {"uri": pa.chunked_array(uris), "locator": pa.chunked_array(parts)}


def _ids(small: pa.Table, columns: Columns, files: list[_File]) -> tuple[pa.ChunkedArray | pa.Array, bool, list[str]]:
    """A column of names that differ, else, which the second value says, the file and the row; and remarks."""
    if columns.ids_are_given:
        given = small[columns.ids[0]].cast(pa.string())
        if given.null_count:
            raise UserError(f"{given.null_count} rows have no id in the column {columns.ids[0]!r}")
        return given, False, []
    remarks = []
    for name in (*columns.ids, PATH):
        values = small[name].cast(pa.string())
        if not values.null_count and pc.count_distinct(values).as_py() == len(values):
            return values, False, [f"ids are the paths of the sound ({columns.audio}.path)"] * (name == PATH)
        if name != PATH:
            remarks.append(f"column {name!r} does not name every row on its own: not taken for the ids")
    names = [f"{file.name}#{row:06d}" for file in files for row in range(sum(file.groups))]
    return pa.array(names, pa.string()), True, [*remarks, f"ids are the file and the row, as {names[0]!r}"]


def _labels(small: pa.Table, columns: Columns, where: str) -> tuple[pa.Array, list[str], list[str]]:
    """Label ids, their names, and remarks."""
    if not columns.labels:
        return label_ids(pa.array([""] * small.num_rows))[0], [], []
    column = small[columns.labels].combine_chunks()
    values = pc.list_flatten(column) if _is_list(column.type) else column
    if columns.class_names:
        return _numbered(column, columns)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if not (is_text or pa.types.is_integer(values.type)):
        raise UserError(f"the labels of {columns.labels!r} in {where!r} are {column.type}, not names or numbers")
    texts = values.cast(pa.string())
    if len(texts) and _are_mids(texts):
        table = class_table_near(where)
        if table is not None:
            return *named_mids(column, table), [f"names of labels from {table}"]
        if columns.labels != "human_labels" and "human_labels" in columns.left_out:
            advice = "--columns labels=human_labels takes the names"
            return *label_ids(column), [
                f"labels are ids of AudioSet's classes: {advice}, or put its class table beside"
            ]
    if columns.numbers:
        named = _named_by_number(texts, small[columns.numbers].combine_chunks())
        if named is not None:
            return label_ids(column, named)[0], named, []
    separator, remarks = ";", []
    if not _is_list(column.type) and columns.labels.endswith("s") and _are_comma_lists(texts):
        separator, remarks = ",", [f"labels in {columns.labels!r} are separated by commas"]
    return *label_ids(column, separator=separator), remarks


def _numbered(column: pa.Array, columns: Columns) -> tuple[pa.Array, list[str], list[str]]:
    """Labels that are numbers of named classes; -1 and null are none."""
    names = list(columns.class_names)
    values = _cast(pc.list_flatten(column) if _is_list(column.type) else column, pa.int64(), columns.labels)
    values = pc.if_else(pc.equal(values, -1), None, values)
    worst = pc.min_max(values).as_py()
    if worst["max"] is not None and not 0 <= worst["min"] <= worst["max"] < len(names):
        wrong = worst["max"] if worst["min"] >= 0 else worst["min"]
        raise UserError(f"column {columns.labels!r} has the label {wrong}, the metadata names {len(names)} classes")
    numbers = values.cast(pa.string())
    if _is_list(column.type):
        numbers = pa.ListArray.from_arrays(column.offsets.cast(pa.int32()), numbers)
    return label_ids(numbers, [str(i) for i in range(len(names))])[0], names, []


def _named_by_number(names: pa.Array, numbers: pa.Array) -> list[str] | None:
    """Names in the order of their numbers, where each has one of its own."""
    if names.null_count or numbers.null_count or pc.any(pc.match_substring_regex(names, r";|^\s|\s$|^$")).as_py():
        return None
    pairs = pa.table({"name": names, "number": numbers}).group_by(["name", "number"]).aggregate([]).to_pylist()
    if len({p["name"] for p in pairs}) != len(pairs) or len({p["number"] for p in pairs}) != len(pairs):
        return None
    return [pair["name"] for pair in sorted(pairs, key=lambda pair: pair["number"])]


def _are_mids(texts: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(pc.drop_null(texts), f"^{MID.pattern}$")).as_py())


def _are_comma_lists(texts: pa.Array) -> bool:
    """Texts with commas, none followed by a blank as in "Child speech, kid speaking"."""
    found = pc.sum(pc.match_substring_regex(texts, ",")).as_py() or 0
    return bool(found) and not pc.any(pc.match_substring_regex(texts, r",(\s|$)|;")).as_py()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.Array | pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"the column {name!r} is {column.type}: {one_line(error)[:150]}") from error


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(column.cast(pa.string()), "")


def _file_splits(files: list[_File]) -> pa.ChunkedArray:
    return pa.chunked_array(
        [pa.array([split_of(file.name)]).take(pa.array(np.zeros(sum(file.groups), np.int8))) for file in files]
    )


def _counts(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    counted = pc.value_counts(column)
    return counted.field("values").to_pylist(), counted.field("counts").to_pylist()
