"""A map as a static site: the viewer's page, the table, and in it a preview of each clip's sound and its log-mel, since
no server makes them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel
from ajepa.audio.read_ahead import Opener, read_ahead
from ajepa.errors import UserError, one_line
from pipelines.cli.arguments import usable_cpus
from pipelines.cli.progress import Progress
from pipelines.explorer import sounds
from pipelines.explorer.site import PAGE, Site

MARKER = "explore.json"  # written last
PICTURE = 200, 64  # pixels
AT_ONCE = 500  # clips of a row group of the table
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as the Hugging Face Hub holds sound and pictures
LARGE = 1 << 30  # bytes of a table that a browser has to hold


@dataclass(frozen=True)
class Exported:
    """What was written."""

    clips: int
    unread: int  # clips without a preview
    first: str  # what is wrong with the first of them
    size: int  # bytes of the table


def export_site(site: Site, front_end: LogMel, output: str, seconds: float) -> Exported:
    """Write the site.

    Args:
        seconds: of each clip's preview; 0 leaves sounds and log-mels out.

    Raises:
        UserError: not one sound could be read.
    """
    _copy(site.viewer, output)
    _copy(PAGE, storage.join(output, "explore"))
    storage.write_text(storage.join(output, "index.html"), site.index(search=False))
    storage.make_folder(storage.join(output, "data"))
    storage.write_text(storage.join(output, "data/metadata.json"), json.dumps(site.metadata(heard=seconds > 0)))
    table = storage.join(output, "data/dataset.parquet")
    errors: list[str] = []
    with storage.atomic_output(table) as stream:
        parts = _with_previews(site, front_end, seconds, errors) if seconds > 0 else iter([site.columns])
        first = next(parts)
        with pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for part in parts:
                writer.write_table(part)
        if len(errors) == site.table.num_rows:
            raise UserError(
                f"not one of {len(errors)} sounds could be read ({errors[0]}): restore the files, or leave sound out "
                "with --previews 0"
            )
    storage.write_text(storage.join(output, MARKER), json.dumps({"clips": site.table.num_rows, "previews": seconds}))
    size = dict(storage.list_files(output))["data/dataset.parquet"]
    return Exported(site.table.num_rows, len(errors), errors[0] if errors else "", size)


def _with_previews(site: Site, front_end: LogMel, seconds: float, errors: list[str]) -> Iterator[pa.Table]:
    """The table in parts, with previews made by all CPUs; what is wrong with clips goes to `errors`."""
    places = site.table.select(["clip_id", "uri", "start_s", "duration_s", "locator"])
    with Progress("previews", site.table.num_rows) as progress, ThreadPoolExecutor(usable_cpus()) as pool:
        for start in range(0, max(site.table.num_rows, 1), AT_ONCE):
            clips = places.slice(start, AT_ONCE).to_pylist()
            with read_ahead(clips) as opener:
                made = list(pool.map(lambda clip: _preview(clip, front_end, seconds, opener), clips))
            failed = [m for m in made if isinstance(m, str)]
            errors += failed
            progress.update(len(clips), len(failed))
            part = site.columns.slice(start, AT_ONCE)
            for i, (name, kind) in enumerate((("sound", "mp3"), ("log_mel", "png"))):
                files = [None if isinstance(m, str) else {"bytes": m[i], "path": f"clip.{kind}"} for m in made]
                part = part.append_column(name, pa.array(files, FILE))
            yield part


def _preview(clip: dict[str, Any], front_end: LogMel, seconds: float, opener: Opener) -> tuple[bytes, bytes] | str:
    try:
        samples = sounds.waveform(clip, seconds, opener)
    except AudioError as error:
        return f"{clip['clip_id']}: {one_line(error)}"
    return sounds.as_file(samples, "MP3"), sounds.picture(samples, front_end, *PICTURE)


def _copy(folder: Path, target: str) -> None:
    """All files of a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        copied = storage.join(target, path.relative_to(folder).as_posix())
        storage.make_folder(copied.rpartition("/")[0])
        with storage.atomic_output(copied) as stream:
            stream.write(path.read_bytes())
