"""What the actors of the embed job do: hold the model and write parts of the output. Imports what they use and no
more."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ajepa.choices import Branch, Precision
from ajepa.errors import UserError
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.pretrained import load_encoder
from ajepa.shards.dataset import open_dataset
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.writer import ShardResult
from pipelines.rayjobs.data_tasks import make_blocks
from pipelines.rayjobs.plan import read_block


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
