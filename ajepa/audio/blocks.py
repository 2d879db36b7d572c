"""How the clips of a job are cut into blocks, so that what must be read in one piece is read by one task."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ROWS_TOGETHER = 1000  # of a Parquet row group, which is read in one piece
MOST_PIECES = 3  # into which a larger one is cut: each but the first passes over the rows before it


def block_sizes(clips: pa.Table, size: int) -> list[int]:
    """Clips of each block, in the order of a manifest. Rows of one Parquet row group stay together, and pieces of a
    recording that are decoded in one pass.

    Args:
        clips: of MANIFEST_SCHEMA, `in_reading_order`.
        size: clips of a block; fewer where the next group does not fit any more, more where one alone is larger.
    """
    if clips["locator"].null_count == clips.num_rows:
        return [min(size, clips.num_rows - start) for start in range(0, clips.num_rows, size)]
    sizes: list[int] = []
    block = 0
    for piece in _pieces(clips, max(size, ROWS_TOGETHER)):
        if block and block + piece > size:
            sizes.append(block)
            block = 0
        block += piece
    return [*sizes, block] if block else sizes


def _pieces(clips: pa.Table, most: int) -> list[int]:
    """Clips that stay together, one after the other."""
    locator = clips["locator"]
    group = pc.fill_null(pc.struct_field(locator, "row_group"), -1).to_numpy()
    begin = pc.fill_null(pc.struct_field(locator, "decoded_from_s"), -1.0).to_numpy()
    offset = pc.fill_null(pc.struct_field(locator, "offset"), -1).to_numpy()
    file = clips["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    same = (file[1:] == file[:-1]) & (group[1:] == group[:-1])
    in_group = same & (group[1:] >= 0)
    in_pass = same & (begin[1:] >= 0) & (begin[1:] == begin[:-1]) & (offset[1:] == offset[:-1])
    is_first = np.concatenate([[True], ~(in_group | in_pass)])
    pieces: list[int] = []
    for rows in np.diff(np.flatnonzero(np.append(is_first, True))).tolist():
        parts = min(MOST_PIECES, -(-rows // most))
        pieces += [rows * (i + 1) // parts - rows * i // parts for i in range(parts)]
    return pieces
