"""Frozen features on disk, computed once for an encoder and a dataset. Files are written whole or not at all; what
does not read back as it was written is computed again, with a warning."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from ajepa import storage
from ajepa.choices import POOLINGS, Combine, Pooling
from ajepa.errors import UserError
from ajepa.evaluation.features import encoder_features, patch_features, valid_patches
from ajepa.evaluation.heads import Features
from ajepa.inference.encoder import AudioEncoder
from ajepa.shards.dataset import ShardDataset

DEFAULT_GB = 20.0
VERSION = 1  # goes up when the same encoder gives other features


def default_cache() -> str:
    """$AJEPA_CACHE, or ~/.cache/ajepa/features."""
    return os.environ.get("AJEPA_CACHE") or str(Path.home() / ".cache" / "ajepa" / "features")


def size_limit() -> float:
    """Bytes that the folder may hold: $AJEPA_CACHE_GB, or DEFAULT_GB."""
    given = os.environ.get("AJEPA_CACHE_GB", "")
    try:
        return float(given or DEFAULT_GB) * 1e9
    except ValueError as error:
        raise UserError(f"AJEPA_CACHE_GB={given!r} is no number") from error


@dataclass(frozen=True)
class FeatureCache:
    """A local folder of features; the key is everything they depend on."""

    folder: Path

    def pooled(
        self, encoder: AudioEncoder, dataset: ShardDataset, layers: Sequence[int] | None, combine: Combine
    ) -> dict[Pooling, np.ndarray]:
        """As encoder_features gives them."""
        path = self._path(encoder, dataset, layers, f"pooled-{combine}", "safetensors")
        if path.exists():
            try:
                path.touch()  # used last
                return _read_arrays(path)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                print(f"cached features {path} are damaged ({error}): computing them again", file=sys.stderr)
        features = encoder_features(encoder, dataset, layers, combine)
        data = safetensors.numpy.save(
            {str(name): values for name, values in features.items()}, {"digest": _digest(features)}
        )
        self._write(path, [data])
        return features

    def patches(self, encoder: AudioEncoder, dataset: ShardDataset, layers: Sequence[int] | None) -> Features:
        """Embeddings of all patches, read from the file as they are needed.

        Raises:
            UserError: the file cannot be written.
        """
        path = self._path(encoder, dataset, layers, "patches", "npy")
        valid = valid_patches(encoder, dataset)
        shape = (*valid.shape, encoder.width * len(layers or (0,)))
        if path.exists():
            try:
                path.touch()
                values = np.load(path, mmap_mode="r", allow_pickle=False)
                if values.shape != shape or values.dtype != np.float16:
                    raise ValueError(f"shape {values.shape}")
                return Features(values, valid)
            except (OSError, ValueError) as error:
                print(f"cached features {path} are damaged ({error}): computing them again", file=sys.stderr)
        size = 2 * int(np.prod(shape))
        print(f"writing {size / 1e9:.2f} GB of patch embeddings to {path}", file=sys.stderr)
        parts = (np.ascontiguousarray(part).tobytes() for part in patch_features(encoder, dataset, layers))
        if not self._write(path, itertools.chain([_npy_header(shape)], parts)):
            raise UserError(
                f"attentive pooling keeps its patches in a file, and {path} cannot be written: give --cache"
            )
        return Features(np.load(path, mmap_mode="r", allow_pickle=False), valid)

    def _path(
        self, encoder: AudioEncoder, dataset: ShardDataset, layers: Sequence[int] | None, kind: str, end: str
    ) -> Path:
        # The dataset's hash says nothing about the order of its rows; features have one.
        order = hashlib.blake2b("\n".join(dataset.read_columns(["clip_id"])["clip_id"].to_pylist()).encode())
        key: list[Any] = [
            VERSION, sorted(POOLINGS), encoder.about["digest"], encoder.precision, encoder.device.type,
            dataset.content_hash, order.hexdigest(), None if layers is None else list(layers), kind,
        ]  # fmt: skip
        name = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}-{kind}.{end}"

    def _write(self, path: Path, parts: Iterable[bytes]) -> bool:
        """Whether it is there now; where it cannot be written, a warning says so."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with storage.atomic_output(str(path)) as stream:
                for part in parts:
                    stream.write(part)
            self._shrink(path)
        except OSError as error:
            print(f"features are not cached: {error}", file=sys.stderr)
            return False
        return True

    def _shrink(self, kept: Path) -> None:
        """Delete what was used longest ago, down to the limit."""
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.iterdir() if path.is_file()]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= size_limit():
                return
            if path != kept:
                with contextlib.suppress(OSError):  # open on a system that does not part with open files
                    path.unlink()
                    total -= size


def _read_arrays(path: Path) -> dict[Any, np.ndarray]:
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(arrays) != file.metadata()["digest"]:
            raise ValueError("other bytes than were written")
    return arrays


def _digest(arrays: Mapping[Any, np.ndarray]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return stream.getvalue()
