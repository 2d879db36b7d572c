"""Clips in the containers that people hold them in, and the same clips as loose files."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest
from ajepa.audio.sources import load_manifest
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


def flac(seed: int, seconds: float = 0.5, rate: int = 16_000, kind: str = "FLAC") -> bytes:
    """A file of noise."""
    stream = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(stream, samples, rate, format=kind)
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
