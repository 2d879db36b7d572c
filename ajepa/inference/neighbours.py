"""The clips of an embedding folder that are most like a query, or like each of them, by cosine similarity."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ajepa.errors import UserError
from ajepa.inference.embeddings import Embeddings, vectors_of

AT_ONCE = 1 << 14  # clips compared at a time
TILE = 512, 1 << 14  # clips of `nearest_of_all` that are compared with clips, at a time


@dataclass(frozen=True)
class Neighbour:
    """A clip and how like the query it is."""

    similarity: float  # cosine, 1 for the same direction
    clip_id: str
    uri: str
    start_s: float
    labels: tuple[str, ...]


def nearest(embeddings: Embeddings, query: np.ndarray, top: int) -> list[Neighbour]:
    """The `top` clips nearest to `query` [D], most similar first and by clip id where they tie.

    Every part is read once; memory holds AT_ONCE clips and the best so far.

    Raises:
        UserError: no clip-level embeddings, or of another dimension.
    """
    if embeddings.level != "clip":
        raise UserError(f"{embeddings.path!r} holds {embeddings.level} embeddings: neighbours need --level clip")
    if query.shape != (embeddings.dimension,):
        raise UserError(f"the query has the shape {list(query.shape)}, the embeddings have {embeddings.dimension}")
    best: pa.Table | None = None
    waiting: list[pa.Table] = []
    for group in embeddings.row_groups(["clip_id", "uri", "start_s", "labels", "embedding"]):
        waiting.append(group)
        if sum(table.num_rows for table in waiting) >= AT_ONCE:
            best, waiting = _best(best, pa.concat_tables(waiting), query, top), []
    if waiting:
        best = _best(best, pa.concat_tables(waiting), query, top)
    if best is None:
        return []
    names = embeddings.label_names
    return [
        Neighbour(r["similarity"], r["clip_id"], r["uri"], r["start_s"], tuple(names[i] for i in r["labels"]))
        for r in best.to_pylist()
    ]


def _best(best: pa.Table | None, rows: pa.Table, query: np.ndarray, top: int) -> pa.Table:
    similarity = pa.array(cosine(vectors_of(rows), query))
    found = rows.drop_columns("embedding").append_column("similarity", similarity)
    found = found if best is None else pa.concat_tables([best, found])
    order = pc.select_k_unstable(found, top, [("similarity", "descending"), ("clip_id", "ascending")])
    return found.take(order)


def cosine(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosine similarity [n] float64 of vectors [n, D] to a query [D]; 0 where one of them is zero."""
    vectors, query = vectors.astype(np.float64), query.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.divide(vectors @ query, norms, out=np.zeros(len(vectors)), where=norms > 0)


def nearest_of_all(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other clips of each clip, most similar first: numbers [n, k] int64 and cosines [n, k] float32, where
    k is `count` or one less than n. Exact, tile by tile: memory holds the vectors and one TILE of similarities."""
    known = torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(vectors, np.float32)))
    n, (rows, columns) = len(known), TILE
    k = max(0, min(count, n - 1))
    numbers, cosines = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, rows):
        asked = known[start : start + rows]
        own = torch.arange(start, start + len(asked))
        values, places = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
        for first in range(0, n, columns):
            found = asked @ known[first : first + columns].T
            here = (own >= first) & (own < first + found.shape[1])
            found[here, own[here] - first] = -2.0  # itself
            best, at = found.topk(min(k, found.shape[1]), dim=1)
            values, places = torch.cat([values, best], 1), torch.cat([places, at + first], 1)
            if values.shape[1] > k:
                values, at = values.topk(k, dim=1)
                places = places.gather(1, at)
        numbers[start : start + len(asked)], cosines[start : start + len(asked)] = places.numpy(), values.numpy()
    return numbers, cosines
