"""A finished folder of parts: a JSON file over them, written last. A folder without it is unfinished."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.shards.dataset import Shard, check_complete, require_finished
from ajepa.shards.files import read_shards
from ajepa.shards.schema import OK


@dataclass(frozen=True, kw_only=True)
class PartFolder:
    """What the JSON file says. Open it with a function of the kind of folder."""

    path: str
    label_names: tuple[str, ...]  # of the clips, by label id
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
                    f"{where!r} cannot be read ({reason}): restore it, or run the job into a new folder"
                ) from error


@dataclass(frozen=True)
class FolderKind:
    """What a kind of folder is called."""

    name: str  # "embedding folder"
    command: str  # that makes it, "embed"
    marker: str  # the JSON file
    version: int  # of the format

    @property
    def again(self) -> str:
        """What to do about a damaged one."""
        return f"restore it, or run {self.command} into a new folder"

    def read(self, path: str) -> dict[str, Any]:
        """The JSON file of a finished folder.

        Raises:
            UserError: nothing there, an unfinished job, damaged, or of another version.
        """
        where = require_finished(path, self.marker, self.name, self.command)
        info = read_document(where, self.again)
        with refusing_damage(where, self.again):
            if info["format_version"] != self.version:
                raise UserError(f"{where!r} has format {info['format_version']}, this version reads {self.version}")
            require_types(info, label_names=list, parts=list, counts=dict)
        return info

    def common(self, path: str, info: dict[str, Any]) -> dict[str, Any]:
        """The fields of `PartFolder`; what is missing raises inside `refusing_damage`."""
        return {
            "path": storage.absolute(path),
            "label_names": tuple(info["label_names"]),
            "parts": tuple(Shard(part["name"], part["rows"]) for part in info["parts"]),
            "num_clips": info["counts"]["ok"],
            "num_failed": info["counts"]["bad"],
            "info": info,
        }

    def finish(self, output: str, expected: int, about: dict[str, Any]) -> None:
        """Check that every clip is there exactly once and write the JSON file, of which `about` is a part.

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
        info = {"format_version": self.version, **about, "counts": counts, "parts": parts}
        storage.write_text(storage.join(output, self.marker), json.dumps(info, indent=1))
