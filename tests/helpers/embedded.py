"""Embedding folders made without Ray, as `embed.py` leaves them."""

import dataclasses
from pathlib import Path

from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.embeddings import Embeddings, finish_embeddings
from ajepa.inference.pretrained import load_encoder
from ajepa.shards.schema import BAD, OK


def embed(
    manifest: Manifest, folder: Path, *, per_part: int = 8, encoder: str = "nano", batch_size: int | None = None
) -> Embeddings:
    """The clips of a manifest, in parts of so many."""
    settings = EmbedSettings()
    embedder = Embedder(load_encoder(encoder), settings, batch_size=batch_size)
    output = str(folder)
    for status in (OK, BAD):
        storage.make_folder(storage.join(output, status))
    for index, start in enumerate(range(0, manifest.clips.num_rows, per_part)):
        embedder.write_files(manifest.clips.slice(start, per_part), index, output)
    about = {
        "level": "clip", "pooling": "mean", "layers": None, "dimension": embedder.dimension,
        "label_names": manifest.label_names, "plan": dataclasses.asdict(settings),
        "encoder": embedder.encoder.about | {"source": encoder, "checkpoint": encoder, "precision": "fp32"},
    }  # fmt: skip
    return finish_embeddings(output, manifest.clips.num_rows, about)
