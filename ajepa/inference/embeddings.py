"""A finished folder of embeddings: embeddings.json over its parts. Written last; a folder without it is unfinished."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.choices import Level
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.shards.dataset import Shard, check_complete, require_finished
from ajepa.shards.files import read_shards
from ajepa.shards.schema import OK

EMBEDDINGS_JSON = "embeddings.json"
FORMAT_VERSION = 1
AGAIN = "restore it, or run embed into a new folder"


@dataclass(frozen=True)
class Embeddings:
    """What embeddings.json says. Open it with `open_embeddings`."""

    path: str
    level: Level
    dimension: int
    encoder: dict[str, Any]  # source, branch, step, dataset_hash, digest, precision
    label_names: tuple[str, ...]
    parts: tuple[Shard, ...]
    num_clips: int  # status=ok
    num_failed: int  # status=bad
    info: dict[str, Any]  # the whole file

    def row_groups(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of the ok rows, row group by row group: memory holds one.

        Raises:
            UserError: a part that is missing or damaged, by name.
        """
        for part in self.parts:
            where = storage.join(self.path, part.name)
            try:
                with storage.open_input(where) as stream:
                    parquet = pq.ParquetFile(stream)
                    if parquet.metadata.num_rows != part.rows:
                        raise UserError(f"{where!r} has {parquet.metadata.num_rows} rows, not {part.rows}: restore it")
                    for group in range(parquet.num_row_groups):
                        yield parquet.read_row_group(group, columns=columns)
            except (pa.ArrowException, OSError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{where!r} cannot be read ({reason}): restore it, or embed into a new folder"
                ) from error


def open_embeddings(path: str) -> Embeddings:
    """Read embeddings.json of a finished folder.

    Raises:
        UserError: nothing there, an unfinished job, damaged, or of another version.
    """
    where = require_finished(path, EMBEDDINGS_JSON, "embedding folder", "embed")
    info = read_document(where, AGAIN)
    with refusing_damage(where, AGAIN):
        if info["format_version"] != FORMAT_VERSION:
            raise UserError(f"{where!r} has format {info['format_version']}, this version reads {FORMAT_VERSION}")
        require_types(info, encoder=dict, label_names=list, parts=list, counts=dict)
        return Embeddings(
            path=storage.absolute(path),
            level=info["level"],
            dimension=info["dimension"],
            encoder=dict(info["encoder"]),
            label_names=tuple(info["label_names"]),
            parts=tuple(Shard(part["name"], part["rows"]) for part in info["parts"]),
            num_clips=info["counts"]["ok"],
            num_failed=info["counts"]["bad"],
            info=info,
        )


def finish_embeddings(output: str, expected: int, about: dict[str, Any]) -> Embeddings:
    """Check that every clip is there exactly once and write embeddings.json, of which `about` is a part.

    Raises:
        UserError: the parts do not hold the expected clips, one is damaged, or not one clip could be read.
    """
    storage.sweep(output)
    parts, ids, seconds = [], [], 0.0
    for name, table in read_shards(output, OK, ["clip_id", "duration_s"]):
        parts.append({"name": f"{OK}/{name}", "rows": table.num_rows})
        ids += table["clip_id"].chunks
        seconds += pc.sum(table["duration_s"]).as_py() or 0.0
    reasons = check_complete(output, pa.chunked_array(ids, pa.string()), expected)
    counts = {
        "ok": sum(map(len, ids)),
        "bad": reasons.total(),
        "bad_by_stage": dict(reasons),
        "hours": seconds / 3600,
    }
    info = {"format_version": FORMAT_VERSION, **about, "counts": counts, "parts": parts}
    storage.write_text(storage.join(output, EMBEDDINGS_JSON), json.dumps(info, indent=1))
    return open_embeddings(output)
