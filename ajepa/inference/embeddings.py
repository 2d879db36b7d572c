"""A finished folder of embeddings: embeddings.json over its parts, see `PartFolder`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa import storage
from ajepa.choices import Level
from ajepa.documents import refusing_damage, require_types
from ajepa.inference.part_folder import FolderKind, PartFolder

EMBEDDINGS_JSON = "embeddings.json"
KIND = FolderKind("embedding folder", "embed", EMBEDDINGS_JSON, version=1)


@dataclass(frozen=True, kw_only=True)
class Embeddings(PartFolder):
    """What embeddings.json says. Open it with `open_embeddings`."""

    level: Level
    dimension: int
    encoder: dict[str, Any]  # source, branch, step, dataset_hash, digest, precision


def open_embeddings(path: str) -> Embeddings:
    """Read embeddings.json of a finished folder.

    Raises:
        UserError: nothing there, an unfinished job, damaged, or of another version.
    """
    info = KIND.read(path)
    with refusing_damage(storage.join(storage.absolute(path), EMBEDDINGS_JSON), KIND.again):
        require_types(info, encoder=dict)
        return Embeddings(
            **KIND.common(path, info), level=info["level"], dimension=info["dimension"], encoder=dict(info["encoder"])
        )


def finish_embeddings(output: str, expected: int, about: dict[str, Any]) -> Embeddings:
    """Check that every clip is there exactly once and write embeddings.json, of which `about` is a part.

    Raises:
        UserError: the parts do not hold the expected clips, one is damaged, or not one clip could be read.
    """
    KIND.finish(output, expected, about)
    return open_embeddings(output)


def vectors_of(rows: pa.Table) -> np.ndarray:
    """[n, D] float32: the column `embedding` of rows of level `clip`."""
    return pc.list_flatten(rows["embedding"]).to_numpy().reshape(rows.num_rows, -1)
