"""Long recordings as consecutive clips: one manifest row a piece, each decoded by seeking to its own start."""

import contextlib
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa.audio.decode import clip_duration
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest, in_reading_order
from ajepa.audio.pieces import with_passes
from ajepa.audio.read_ahead import Opener, open_clip, read_ahead
from ajepa.choices import LastSegment
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError

PROBES = 16  # files whose header is read at a time
MAX_SECONDS = 7 * 24 * 3600.0  # what a header may claim and be believed


def segment(manifest: Manifest, seconds: float, last: LastSegment, config: FrontEndConfig) -> Manifest:
    """Cut every row longer than `seconds` into consecutive clips of that length, named "ID#00000", "ID#00001", ...

    Args:
        seconds: length of a clip, at most the front end's clip.
        last: whether the shorter piece at a recording's end is kept (readers fill the window) or left out. A piece
            shorter than one window of the front end is always left out; recordings that are short as a whole stay.

    Raises:
        UserError: `seconds` does not fit the front end.
    """
    window, longest = config.win_length / config.sample_rate, config.clip_frames / config.frame_rate
    if not window < seconds <= longest:
        raise UserError(f"--segment {seconds:g} must be above {window:g} and at most {longest:g} s (--clip-frames)")
    rows = manifest.clips
    lengths, doubted = _lengths(rows)
    long = lengths > seconds * (1 + 1e-9)
    whole = np.floor(lengths / seconds + 1e-6).astype(np.int64)
    rest = np.maximum(lengths - whole * seconds, 0.0)
    kept = rest >= window if last == "pad" else np.zeros(len(rest), bool)
    pieces = np.where(long, whole + kept, 1)
    index = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut = long[index]
    start = rows["start_s"].to_numpy()[index] + np.where(cut, number * seconds, 0.0)
    # A clip of the full length holds one sample less than its frames span: the next frame belongs to the next clip.
    full = min(seconds, config.clip_samples / config.sample_rate)
    length = np.where(number < whole[index], full, rest[index])
    taken = rows.take(pa.array(index))
    suffixes = [f"#{n:05d}" if c else "" for n, c in zip(number.tolist(), cut.tolist(), strict=True)]
    replaced = {
        "clip_id": pc.binary_join_element_wise(taken["clip_id"], pa.array(suffixes), ""),
        "start_s": pa.array(start),
        "duration_s": pc.if_else(pa.array(cut), pa.array(length), taken["duration_s"]),
    }
    columns = [replaced.get(name, taken[name]) for name in MANIFEST_SCHEMA.names]
    left_out = long & (rest > 1e-6) & ~kept
    remarks = [f"{long.sum()} recordings cut into {cut.sum()} clips of {seconds:g} s"] if long.any() else []
    if left_out.any():
        remarks.append(f"{left_out.sum()} shorter pieces at their ends left out, {rest[left_out].sum():.1f} s in all")
    if doubted:
        remarks.append(
            f"{len(doubted)} files claim more than {MAX_SECONDS / 3600:g} hours and were not cut: {doubted[0]}"
        )
    return dataclasses.replace(
        manifest,
        clips=in_reading_order(with_passes(pa.table(columns, schema=MANIFEST_SCHEMA))),
        remarks=(*manifest.remarks, *remarks),
    )


def _lengths(rows: pa.Table) -> tuple[np.ndarray, Sequence[str]]:
    """Seconds of each row, from the row or its file's header (0 where that cannot tell: the job finds out why),
    and the ids of rows whose files claim too much."""
    lengths = pc.fill_null(rows["duration_s"], np.nan).to_numpy().copy()
    unknown = np.flatnonzero(np.isnan(lengths))
    if len(unknown):
        clips = rows.take(pa.array(unknown)).to_pylist()
        # Of whole files the header is enough; what lies in a container is read once, in order.
        opening = contextlib.nullcontext(open_clip) if rows["locator"].null_count == len(rows) else read_ahead(clips)
        with opening as opener, ThreadPoolExecutor(PROBES) as pool:
            found = np.array(list(pool.map(lambda clip: _duration(clip, opener), clips)))
        lengths[unknown] = np.maximum(found - rows["start_s"].to_numpy()[unknown], 0.0)
    doubted = np.flatnonzero(lengths > MAX_SECONDS)
    lengths[doubted] = 0.0
    return lengths, rows["clip_id"].take(pa.array(doubted)).to_pylist()


def _duration(clip: dict[str, Any], opener: Opener) -> float:
    try:
        return clip_duration(clip, opener)
    except AudioError:
        return 0.0
