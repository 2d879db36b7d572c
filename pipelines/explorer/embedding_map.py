"""The map of an embedding folder: `map.parquet`, a row a clip, and `map.json`, written last. Made once; made again
where the embeddings or the settings are others. The embeddings themselves stay as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.errors import UserError
from ajepa.inference.embeddings import EMBEDDINGS_JSON, Embeddings, vectors_of
from ajepa.inference.neighbours import nearest_of_all
from pipelines.cli.command import announce
from pipelines.cli.lock import claimed
from pipelines.explorer.layout import clusters, places

FOLDER = "map"  # in the embedding folder
MAP_JSON, MAP_PARQUET = "map.json", "map.parquet"
VERSION = 1
NEIGHBOURS = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
SCHEMA = pa.schema(
    [
        *(field for field in MANIFEST_SCHEMA if field.name != "labels"),
        ("label", pa.string()),
        ("cluster", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("neighbors", NEIGHBOURS),  # numbers of rows, and 1 - cosine similarity
    ]
)


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """What a map depends on beside the embeddings."""

    neighbours: int = 15
    """Nearest clips that are kept of each clip; the layout is made from them."""
    clusters: int = 12
    """Clusters by which clips are coloured where they have no labels."""
    seed: int = 0
    """Of layout and clusters."""


def require_clip_level(embeddings: Embeddings) -> None:
    """Refuse embeddings that have no one vector a clip.

    Raises:
        UserError: they do.
    """
    if embeddings.level != "clip":
        raise UserError(
            f"{embeddings.path!r} holds {embeddings.level} embeddings, which have no place on a map: embed the clips "
            "with --level clip into another folder"
        )


def open_map(embeddings: Embeddings, folder: str, settings: MapSettings) -> pa.Table:
    """The map, a row a clip in the order of the parts. It is made where there is none of these embeddings.

    Raises:
        UserError: no clip-level embeddings, a damaged part of them, or nothing can be written there.
    """
    require_clip_level(embeddings)
    about = _about(embeddings, settings)
    if _written(folder) == about and (known := _read(folder)) is not None:
        return known
    with claimed(folder):
        begun = time.monotonic()
        announce(f"map: places and neighbours of {embeddings.num_clips} clips, once for this folder")
        table = make_map(embeddings, settings)
        storage.delete(storage.join(folder, MAP_JSON))
        with storage.atomic_output(storage.join(folder, MAP_PARQUET)) as stream:
            pq.write_table(table, stream, row_group_size=10_000, compression="zstd")
        storage.write_text(storage.join(folder, MAP_JSON), json.dumps(about, indent=1))
        announce(f"map: {time.monotonic() - begun:.0f} s, kept in {folder}")
    return table


def make_map(embeddings: Embeddings, settings: MapSettings) -> pa.Table:
    """Lay out the clips and find their neighbours and clusters."""
    names = [name for name in MANIFEST_SCHEMA.names if name != "labels"]
    groups = list(embeddings.row_groups([*names, "labels", "embedding"]))
    rows = pa.concat_tables([group.drop_columns("embedding") for group in groups])
    vectors = np.concatenate([vectors_of(group) for group in groups])
    del groups
    numbers, cosines = nearest_of_all(vectors, settings.neighbours)
    where = places(vectors, numbers, cosines, settings.seed)
    found = clusters(vectors, settings.clusters, settings.seed)
    labels = [" | ".join(embeddings.label_names[i] for i in ids) for ids in rows["labels"].to_pylist()]
    columns = {name: rows[name] for name in names}
    columns |= {"label": pa.array(labels), "cluster": pa.array([f"cluster {i + 1:02d}" for i in found])}
    columns |= {"x": pa.array(where[:, 0]), "y": pa.array(where[:, 1]), "neighbors": _lists(numbers, 1 - cosines)}
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def clip_of(table: pa.Table, row: int) -> dict[str, Any]:
    """The manifest row of a clip, for decoders."""
    found: dict[str, Any] = table.slice(row, 1).select(["uri", "start_s", "duration_s", "locator"]).to_pylist()[0]
    return found


def _lists(numbers: np.ndarray, distances: np.ndarray) -> pa.Array:
    n, k = numbers.shape
    ends = pa.array(np.arange(0, (n + 1) * k, k) if k else np.zeros(n + 1), pa.int32())
    ids = pa.ListArray.from_arrays(ends, pa.array(numbers.reshape(-1), pa.int64()))
    lists = pa.ListArray.from_arrays(ends, pa.array(distances.reshape(-1), pa.float32()))
    return pa.StructArray.from_arrays([ids, lists], fields=list(NEIGHBOURS))


def _about(embeddings: Embeddings, settings: MapSettings) -> dict[str, Any]:
    text = storage.read_text(storage.join(embeddings.path, EMBEDDINGS_JSON))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"format_version": VERSION, "embeddings": digest, "settings": dataclasses.asdict(settings)}


def _written(folder: str) -> dict[str, Any] | None:
    where = storage.join(folder, MAP_JSON)
    if storage.path_type(where) != "file":
        return None
    try:
        found = json.loads(storage.read_text(where))
    except ValueError:  # damaged: made again
        return None
    return found if isinstance(found, dict) else None


def _read(folder: str) -> pa.Table | None:
    """None where the file is gone or damaged: it is made again."""
    try:
        with storage.open_input(storage.join(folder, MAP_PARQUET)) as stream:
            return pq.read_table(stream).cast(SCHEMA)
    except (pa.ArrowException, FileNotFoundError):
        return None
