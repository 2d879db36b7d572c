"""The embed job on Ray Data: actors that hold the model, and the parts they write."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.data import ActorPoolStrategy

from ajepa.audio.manifest import Manifest
from ajepa.encoder import Precision
from ajepa.errors import UserError
from ajepa.evaluation.embedder import Embedder, EmbedSettings, part_path
from ajepa.pretrained import Branch, load_encoder
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.schema import OK
from ajepa.shards.writer import ShardResult
from pipelines.blocks import make_blocks, run_blocks, unfinished
from pipelines.common import cluster_cpus, start_ray
from pipelines.plan import manifest_hash, read_block


@dataclass(frozen=True)
class Clips:
    """The clips of a job: files of a manifest, or the rows of shards, whose own bad clips are left out."""

    source: str
    manifest: Manifest
    dataset: ShardDataset | None
    part_size: int  # 0: a part a shard
    sizes: list[int]  # clips of each part

    @property
    def hash(self) -> str:
        return manifest_hash(self.manifest.clips) if self.dataset is None else self.dataset.content_hash


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """All that an actor needs."""

    encoder: str  # of one checkpoint or export: a run folder's newest one may change meanwhile
    branch: Branch | None
    digest: str
    precision: Precision
    device: str
    threads: int
    batch_size: int | None
    embed: EmbedSettings
    output: str
    shards: str | None  # shard folder; None: the manifest beside the plan


class EmbedActor:
    """Holds the model; the map function of the job, see `make_blocks`."""

    def __init__(self, settings: ActorSettings) -> None:
        torch.set_num_threads(1)
        self.settings = settings

    @functools.cached_property
    def embedder(self) -> Embedder:
        """Loaded at the first block, so that what is wrong with it comes back as one line."""
        settings = self.settings
        encoder = load_encoder(settings.encoder, settings.branch, device=settings.device, precision=settings.precision)
        if encoder.about["digest"] != settings.digest:
            raise UserError(f"the encoder at {settings.encoder!r} changed while the job ran")
        return Embedder(encoder, settings.embed, batch_size=settings.batch_size, threads=settings.threads)

    @functools.cached_property
    def groups(self) -> RowGroups | None:
        return None if self.settings.shards is None else RowGroups(open_dataset(self.settings.shards))

    def make(self, index: int) -> ShardResult:
        output = self.settings.output
        if self.groups is not None:
            return self.embedder.write_shard(self.groups, index, output)
        return self.embedder.write_files(read_block(output, index), index, output)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return make_blocks(batch, self.settings.output, self.make)


def embed_all(clips: Clips, settings: ActorSettings, num_workers: int | None) -> dict[str, Any]:
    """Write the parts that are missing, with live progress; figures of this part of the job.

    Raises:
        UserError: more workers than the cluster has GPUs or CPUs, or what stopped the job.
    """
    paths = [part_path(settings.output, OK, i) for i in range(len(clips.sizes))]
    todo = unfinished(settings.output, paths, "parts")
    missing = sum(clips.sizes[i] for i in todo)
    if not todo:
        return run_blocks("embed", todo, missing, EmbedActor)
    start_ray()
    gpus, cpus = int(ray.cluster_resources().get("GPU", 0)), cluster_cpus()
    have, resource = (gpus, "GPU") if gpus else (cpus, "CPU")
    if (num_workers or 1) > have:
        raise UserError(f"--num-workers {num_workers} needs as many {resource}s; the cluster has {have}")
    workers = min(num_workers or have, len(todo))
    threads = max(1, cpus // workers) if gpus else 1
    settings = dataclasses.replace(settings, device="cuda" if gpus else "cpu", threads=threads)
    return run_blocks(
        "embed", todo, missing, EmbedActor,
        fn_constructor_args=(settings,),
        # A part at a time: parts that wait in one actor's queue are missed by another that is free.
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        num_gpus=1 if gpus else None,
    )  # fmt: skip
