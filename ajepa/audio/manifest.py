"""A manifest: one row a clip, whatever source it came from."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# Where in the file of `uri` a clip's sound lies; null: the file is the sound. `kind` names the reader, the others are
# what it needs.
LOCATOR = pa.struct(
    [
        ("kind", pa.string()),
        ("name", pa.string()),  # of the member, the column or the array
        ("offset", pa.int64()),  # of its first byte
        ("size", pa.int64()),  # in bytes
        ("row_group", pa.int32()),
        ("row", pa.int64()),  # in its row group or array
        (
            "decoded_from_s",
            pa.float64(),
        ),  # of pieces of a recording, see `pieces`
    ]
)

# One row a clip. `duration_s` null: to the end of the file. `fold` -1: none.
MANIFEST_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("locator", LOCATOR),
    ]
)


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset, and what the source left out."""

    clips: pa.Table  # of MANIFEST_SCHEMA
    label_names: list[str]  # by label id
    remarks: tuple[str, ...] = ()  # a line each, for people
    missing: tuple[str, ...] = ()  # clips the source lists and has no audio file of
    ids_are_places: bool = False  # in archives; they change with what else lies there


def locators(kind: str | Sequence[str], rows: int, **given: Any) -> pa.StructArray:
    """A column of LOCATOR: of one kind or a kind a row, with what is given, a value a row."""
    values = {"kind": [kind] * rows if isinstance(kind, str) else kind, **given}
    columns = [pa.array(values.get(f.name, pa.nulls(rows, f.type)), f.type) for f in LOCATOR]
    return pa.StructArray.from_arrays(columns, fields=list(LOCATOR))


def in_reading_order(clips: pa.Table) -> pa.Table:
    """Clips sorted so that what is read once is read once: by clip id, or, where files hold many, by their places."""
    if clips["locator"].null_count == clips.num_rows:
        return clips.sort_by("clip_id")
    places = pc.struct_field  # of a locator
    keys = {"uri": clips["uri"]} | {
        name: pc.fill_null(places(clips["locator"], name), -1) for name in ("row_group", "row", "offset")
    }
    keys |= {"start_s": clips["start_s"], "clip_id": clips["clip_id"]}
    order = pc.sort_indices(pa.table(keys), [(name, "ascending") for name in keys])
    return clips.take(order)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Label names in the order of their ids: by number where all are numbers, else by text."""
    texts = set(names)
    numbers = all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in texts)
    return sorted(texts, key=(lambda name: (float(name), name)) if numbers else None)


def make_table(
    ids: Sequence[str],
    uris: Sequence[str],
    labels: Sequence[Sequence[str]],
    names: list[str],
    *,
    start: Sequence[float] | None = None,
    duration: Sequence[float | None] | None = None,
    split: Sequence[str] | None = None,
    fold: Sequence[int] | None = None,
    locator: pa.Array | None = None,
) -> pa.Table:
    n = len(ids)
    number = {name: i for i, name in enumerate(names)}
    columns = [
        ids, uris, start or [0.0] * n, duration or [None] * n, split or [""] * n, fold or [-1] * n,
        [[number[name] for name in row] for row in labels], pa.nulls(n, LOCATOR) if locator is None else locator,
    ]  # fmt: skip
    arrays = [pa.array(c, f.type) for c, f in zip(columns, MANIFEST_SCHEMA, strict=True)]
    defaults = {"start_s": 0.0, "split": "", "fold": -1}  # of empty cells
    filled = [
        pc.fill_null(a, defaults[f.name]) if f.name in defaults else a
        for a, f in zip(arrays, MANIFEST_SCHEMA, strict=True)
    ]
    return pa.table(filled, schema=MANIFEST_SCHEMA)
