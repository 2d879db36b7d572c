"""How the clips of a job are cut into blocks, so that what must be read in one piece is read by one task."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROWS_TOGETHER = 1000  # of a Parquet row group, which is read in one piece
MOST_PIECES = 3  # into which a larger one is cut: each but the first passes over the rows before it


def block_sizes(clips: pa.Table, size: int) -> list[int]:
    """Clips of each block, in the order of a manifest.

    Args:
        clips: of MANIFEST_SCHEMA, `in_reading_order`.
        size: clips of a block; fewer where the next row group does not fit any more, more where one alone is larger.
    """
    pieces = _pieces(clips, max(size, ROWS_TOGETHER))
    if pieces is None:
        return [min(size, clips.num_rows - start) for start in range(0, clips.num_rows, size)]
    sizes: list[int] = []
    block = 0
    for piece in pieces:
        if block and block + piece > size:
            sizes.append(block)
            block = 0
        block += piece
    return [*sizes, block] if block else sizes


def _pieces(clips: pa.Table, most: int) -> list[int] | None:
    """Clips that stay together, one after the other; None where every clip is on its own."""
    locator = clips["locator"]
    if (
        locator.null_count == clips.num_rows
        or not pc.any(pc.equal(pc.struct_field(locator, "kind"), "parquet")).as_py()
    ):
        return None
    group = pc.fill_null(pc.struct_field(locator, "row_group"), -1).to_numpy()
    file = clips["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    is_first = np.ones(len(group), bool)
    is_first[1:] = (group[1:] < 0) | (group[1:] != group[:-1]) | (file[1:] != file[:-1])
    pieces: list[int] = []
    for rows in np.diff(np.flatnonzero(np.append(is_first, True))).tolist():
        parts = min(MOST_PIECES, -(-rows // most))
        pieces += [rows * (i + 1) // parts - rows * i // parts for i in range(parts)]
    return pieces
