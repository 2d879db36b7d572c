"""A recording as the clips of an embedding folder are: embedded by the same encoder with the same settings."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from ajepa import storage
from ajepa.audio.errors import AudioError
from ajepa.audio.read_ahead import Opener, open_clip
from ajepa.documents import refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.embeddings import EMBEDDINGS_JSON, Embeddings
from ajepa.inference.pretrained import load_encoder


def embedder_of(embeddings: Embeddings, encoder: str | None = None) -> Embedder:
    """What made the embeddings.

    Args:
        encoder: where their encoder lies, if it has moved since.

    Raises:
        UserError: it is not there, or it is another one.
    """
    about = embeddings.encoder
    with refusing_damage(storage.join(embeddings.path, EMBEDDINGS_JSON), "embed the clips again"):
        require_types(about, checkpoint=str, source=str, branch=str, precision=str, digest=str)
        plan = embeddings.info["plan"]
        chosen = {field.name: plan[field.name] for field in dataclasses.fields(EmbedSettings)}
        settings = EmbedSettings(**chosen | {"layers": chosen["layers"] and tuple(chosen["layers"])})
    kept = storage.path_type(about["checkpoint"]) != "missing"  # not pruned by more training since
    source = encoder or about["checkpoint" if kept else "source"]
    try:
        loaded = load_encoder(source, about["branch"], precision=about["precision"])
    except UserError as error:
        raise UserError(f"cannot load the encoder of these embeddings: {error} (--encoder says where it is)") from error
    if loaded.about["digest"] != about["digest"]:
        raise UserError(
            f"the embeddings were made by another encoder than {source!r} (digest {about['digest']}, not "
            f"{loaded.about['digest']}): give theirs with --encoder"
        )
    return Embedder(loaded, settings)


def vector_of(embedder: Embedder, recording: str | bytes) -> np.ndarray:
    """The vector [D] of a recording: a local path or URI, or the content of an audio file.

    Raises:
        UserError: it cannot be read, and why.
    """
    if isinstance(recording, bytes):
        uri, opener = "the recording", Opener(lambda _: _opened(recording))
    else:
        uri, opener = storage.absolute(recording), open_clip
    try:
        log_mel, _, _ = embedder.log_mel({"uri": uri, "start_s": 0.0, "duration_s": None}, opener)
    except (AudioError, storage.UnreachableError) as error:
        raise UserError(str(error)) from error
    return embedder.compute([log_mel])[0][0]


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    yield io.BytesIO(content)
