"""Clips to parts of embeddings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.choices import Level, Pooling
from ajepa.errors import UserError
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.part_writer import MAX_SECONDS, PartWriter
from ajepa.model.pooling import valid_columns


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """What an embedding is."""

    level: Level = "clip"
    pooling: Pooling = "mean"
    layers: tuple[int, ...] | None = None
    max_seconds: float = MAX_SECONDS  # of a clip; longer ones are cut


def embedding_schema(level: Level, dimension: int) -> pa.Schema:
    """A manifest row, then `embedding`: D floats of a clip; or a list of such vectors, with `time_ms` (the middle of
    each) for frames, and `grid` (rows, columns) for patches, of which (f, t) has index f * columns + t."""
    vector = pa.list_(pa.float32(), dimension)
    extra = {
        "clip": [("embedding", vector)],
        "frame": [("time_ms", pa.list_(pa.float32())), ("embedding", pa.list_(vector))],
        "patch": [("grid", pa.list_(pa.int32())), ("embedding", pa.list_(vector))],
    }[level]
    about = {"level": level, "dimension": dimension}
    return pa.schema([*MANIFEST_SCHEMA, *extra], metadata={"ajepa.embedding": json.dumps(about)})


class Embedder(PartWriter):
    """An encoder with settings: log-mels to vectors, files and shards to parts; see `PartWriter`.

    Raises:
        UserError: a layer that is not there.
    """

    not_finite = "encoder: the embedding is not finite"

    def __init__(
        self, encoder: AudioEncoder, settings: EmbedSettings, *, batch_size: int | None = None, threads: int = 1
    ) -> None:
        super().__init__(encoder, settings.max_seconds, batch_size=batch_size, threads=threads)
        self.settings = settings
        bins = encoder.front_end.n_mels
        try:  # the shortest input there is
            self.dimension = self.compute([torch.zeros(bins, 1)])[0].shape[1]
        except ValueError as error:
            raise UserError(f"--layers: {error}") from error
        self.schema = embedding_schema(settings.level, self.dimension)
        self.hop_ms = encoder.column_ms

    @torch.inference_mode()
    def compute(self, log_mels: Sequence[Tensor]) -> list[np.ndarray]:
        """Raw log-mels [n_mels, frames] of any lengths to [V, D] float32 each: V is 1 for a clip, its columns for
        frames, and rows * columns for patches. Clips are computed with others of about their length."""
        found: list[np.ndarray] = [np.empty(0)] * len(log_mels)
        for batch, padded, num_frames in self.batches(log_mels):
            layers, pooling = self.settings.layers, self.settings.pooling
            if self.settings.level == "clip":
                pooled = self.encoder.pooled(padded, num_frames, (pooling,), layers=layers)[pooling]
                found_here = list(pooled[:, None].cpu().numpy())
            else:
                if self.settings.level == "frame":
                    values = self.encoder.frames(padded, num_frames, layers=layers)[:, None].cpu().numpy()
                else:
                    values = self.encoder.tokens(padded, num_frames, layers=layers)[0].cpu().numpy()  # [b, R, C, D]
                width = values.shape[-1]
                counts = valid_columns(num_frames).tolist()
                found_here = [v[:, :n].reshape(-1, width) for v, n in zip(values, counts, strict=True)]
            for i, vectors in zip(batch, found_here, strict=True):
                found[i] = vectors
        return found

    def table(self, rows: list[dict[str, Any]], frames: list[int], values: list[np.ndarray]) -> pa.Table:
        counts = [len(v) for v in values]
        flat = pa.array(np.concatenate(values).astype(np.float32, copy=False).reshape(-1))
        embedding: pa.Array = pa.FixedSizeListArray.from_arrays(flat, self.dimension)
        columns = pa.Table.from_pylist(rows, MANIFEST_SCHEMA).columns
        if self.settings.level != "clip":
            embedding = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), embedding)
        if self.settings.level == "frame":
            middle = self.encoder.first_ms
            columns.append(pa.array([middle + self.hop_ms * np.arange(n) for n in counts], pa.list_(pa.float32())))
        elif self.settings.level == "patch":
            bands = self.encoder.rows
            columns.append(pa.array([[bands, n // bands] for n in counts], pa.list_(pa.int32())))
        return pa.table([*columns, embedding], schema=self.schema)
