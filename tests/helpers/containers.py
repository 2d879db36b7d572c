"""Clips in the containers that people hold them in, and the same clips as loose files."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest
from ajepa.audio.sources import load_manifest
from ajepa.choices import SourceName
from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import ShardDataset, finish_dataset
from ajepa.shards.schema import BAD, OK
from ajepa.shards.writer import write_shard

FRONT_END = FrontEndConfig(clip_frames=64)
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Sound:
    """A clip and what its set says of it."""

    id: str
    data: bytes  # a FLAC file
    labels: tuple[str, ...]
    split: str = ""
    fold: int = -1


@dataclass(frozen=True)
class Layout:
    """Clips as people hold them, and what must come of them."""

    source: SourceName
    path: str
    clips: list[Sound]  # as loose files they come to the same dataset
    columns: tuple[str, ...] = ()
    label_names: list[str] | None = None  # where the layout numbers its classes in an order of its own, or has more


def flac(seed: int, seconds: float = 0.5, rate: int = 16_000, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    """A file of noise."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    return encoded(samples, rate, kind, subtype)


def encoded(samples: np.ndarray, rate: int, kind: str = "FLAC", subtype: str | None = None) -> bytes:
    """Samples as a file."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def sounds(count: int, labels: Callable[[int], Sequence[str]] = lambda i: ["cat" if i % 3 else "dog"]) -> list[Sound]:
    """Clips of different lengths and rates, as AudioSet's ids."""
    return [
        Sound(f"id.{i:03d}-x", flac(i, 0.3 + 0.01 * (i % 7), (16_000, 48_000, 44_100)[i % 3]), tuple(labels(i)))
        for i in range(count)
    ]


def loose(folder: Path, clips: Sequence[Sound]) -> str:
    """The clips as files with a list: what every container must come to."""
    folder.mkdir(parents=True)
    with (folder / "clips.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["clip_id", "uri", "labels", "split", "fold"])
        for i, clip in enumerate(clips):
            (folder / f"{i}.flac").write_bytes(clip.data)
            rows.writerow([clip.id, f"{i}.flac", ";".join(clip.labels), clip.split, clip.fold])
    return str(folder / "clips.csv")


def parquet(
    path: Path, columns: Mapping[str, Any], *, group: int = 100, features: Mapping[str, Any] | None = None
) -> str:
    """A Parquet file with the Hub's metadata where there are features."""
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return str(path)


def audio(clips: Sequence[Sound], suffix: str = ".flac") -> pa.Array:
    """The Hub's struct of bytes and path."""
    return pa.array([{"bytes": clip.data, "path": clip.id + suffix} for clip in clips], AUDIO)


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> str:
    """A plain archive of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def members(clips: Sequence[Sound], suffix: str = "json") -> list[tuple[str, bytes]]:
    """Members of an archive as LAION has them: each sound, and a file of its labels behind it."""
    found = []
    for clip in clips:
        found.append((f"{clip.id}.flac", clip.data))
        if suffix == "json":
            found.append((f"{clip.id}.json", json.dumps({"text": ["a sound"], "tag": list(clip.labels)}).encode()))
        elif clip.labels:
            found.append((f"{clip.id}.{suffix}", clip.labels[0].encode()))
    return found


def pack(
    path: Path,
    waveform: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    target: np.ndarray | None = None,
    rate: int | None = 32_000,
    array: str = "waveform",
) -> str:
    """An HDF5 file of samples, as PANNs' create_hdf5 makes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"Yid{i:08d}.wav" for i in range(len(waveform))] if names is None else names
    with h5py.File(path, "w") as file:
        file.create_dataset("audio_name", data=np.array(names, "S20"))
        file.create_dataset(array, data=waveform)
        if target is not None:
            file.create_dataset("target", data=target)
        if rate is not None:
            file.attrs.create("sample_rate", data=rate, dtype=np.int32)
    return str(path)


def mp3_pack(path: Path, clips: Sequence[Sound], target: np.ndarray) -> str:
    """An HDF5 file of MP3 files, their labels in bits, as PaSST and MaskSpec have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("audio_name", data=np.array([f"{clip.id}.mp3" for clip in clips], "S20"))
        sound = file.create_dataset("mp3", (len(clips),), h5py.vlen_dtype(np.uint8))
        for i, clip in enumerate(clips):
            sound[i] = np.frombuffer(clip.data, np.uint8)
        file.create_dataset("target", data=np.packbits(target, axis=1))
    return str(path)


def make_shards(manifest: Manifest, output: Path, size: int = 8) -> ShardDataset:
    """What the job does, without Ray."""
    for status in (OK, BAD):
        (output / status).mkdir(parents=True)
    first = 0
    for index, rows in enumerate(block_sizes(manifest.clips, size)):
        write_shard(manifest.clips.slice(first, rows), index, str(output), FRONT_END)
        first += rows
    return finish_dataset(str(output), FRONT_END, manifest.label_names, manifest.clips.num_rows, {})


def loose_dataset(folder: Path, clips: Sequence[Sound]) -> ShardDataset:
    """The dataset of the clips as loose files."""
    return make_shards(load_manifest("manifest", loose(folder / "loose", clips)), folder / "loose shards")


def bad_rows(dataset: ShardDataset) -> dict[str, str]:
    """Reason by clip."""
    found = [pq.read_table(path).to_pylist() for path in sorted(Path(dataset.path, BAD).glob("*.parquet"))]
    return {row["clip_id"]: row["error"] for rows in found for row in rows}
