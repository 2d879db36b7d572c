"""Labels as lists, texts, numbers or ids of a class table, to lists of label ids and their names."""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa import storage
from ajepa.audio.class_table import CLASS_TABLE, read_classes
from ajepa.audio.manifest import sorted_names
from ajepa.errors import UserError

MID = re.compile(r"/[a-z]/[0-9a-z_]+")  # a label's id, however the CSV was quoted when it was saved again


def label_ids(
    column: pa.ChunkedArray | pa.Array, names: Sequence[str] | None = None, separator: str = ";", known_by: str = ""
) -> tuple[pa.ListArray, list[str]]:
    """Lists of label ids, and the names in the order of their ids, from lists of names or texts as "dog;bark". What a
    clip has twice counts once: "dog;dog" is one label.

    Args:
        names: all there are, in the order of their ids; by default those found, sorted.
        separator: of the names in a text.
        known_by: the file that has the names, for messages.

    Raises:
        UserError: a name that is not among them.
    """
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    if not pa.types.is_list(lists.type) and not pa.types.is_large_list(lists.type):
        lists = pc.split_pattern(pc.fill_null(lists.cast(pa.string()), ""), separator)
    found = pc.utf8_trim_whitespace(pc.fill_null(pc.list_flatten(lists).cast(pa.string()), ""))
    rows = pc.list_parent_indices(lists).to_numpy()
    filled = pc.not_equal(found, "")
    found, rows = found.filter(filled), rows[filled.to_numpy(zero_copy_only=False)]
    names = sorted_names(found.unique().to_pylist()) if names is None else list(names)
    indices = pc.index_in(found, value_set=pa.array(names, pa.string()))
    if indices.null_count:
        raise UserError(f"the label {found.filter(indices.is_null())[0].as_py()!r} is not in {known_by!r}")
    ids = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.sort(np.unique(rows * len(names) + ids, return_index=True)[1])
    rows, ids = rows[first], pa.array(ids[first], pa.int32())
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lists)))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), ids), names


def class_table_near(path: str) -> str | None:
    """AudioSet's class table in the folder of a file or a folder above it, up to three."""
    folder = storage.absolute(path)
    for _ in range(3):
        folder = folder.rpartition("/")[0]
        where = storage.join(folder, CLASS_TABLE)
        if folder and not folder.endswith(":/") and storage.path_type(where) == "file":
            return where
    return None


def named_mids(column: pa.ChunkedArray, table: str) -> tuple[pa.ListArray, list[str]]:
    """Label ids and names of lists of AudioSet's MIDs.

    Raises:
        UserError: a MID that is not in the table.
    """
    classes = read_classes(table)
    return label_ids(column, classes.mids, known_by=table)[0], classes.names
