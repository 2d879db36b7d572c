"""A manifest: one row a clip, whatever source it came from."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

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
    ]
)


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset, and what the source left out."""

    clips: pa.Table  # of MANIFEST_SCHEMA
    label_names: list[str]  # by label id
    remarks: tuple[str, ...] = ()  # a line each, for people
    missing: tuple[str, ...] = ()  # clips the source lists and has no audio file of


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
) -> pa.Table:
    n = len(ids)
    number = {name: i for i, name in enumerate(names)}
    columns = [
        ids, uris, start or [0.0] * n, duration or [None] * n, split or [""] * n, fold or [-1] * n,
        [[number[name] for name in row] for row in labels],
    ]  # fmt: skip
    arrays = [pa.array(c, f.type) for c, f in zip(columns, MANIFEST_SCHEMA, strict=True)]
    defaults = {"start_s": 0.0, "split": "", "fold": -1}  # of empty cells
    filled = [
        pc.fill_null(a, defaults[f.name]) if f.name in defaults else a
        for a, f in zip(arrays, MANIFEST_SCHEMA, strict=True)
    ]
    return pa.table(filled, schema=MANIFEST_SCHEMA)
