"""What the actors of a job that runs a model over clips do: hold the model and write parts of the output. Imports what
they use and no more."""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ajepa.choices import Precision
from ajepa.errors import UserError
from ajepa.inference.part_writer import PartWriter
from ajepa.shards.dataset import open_dataset
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.writer import ShardResult
from pipelines.rayjobs.data_tasks import make_blocks
from pipelines.rayjobs.plan import read_block


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """What every actor needs; a kind of actor adds which model it holds."""

    digest: str  # of the model
    precision: Precision
    batch_size: int | None
    output: str
    shards: str | None = None  # shard folder; None: the manifest beside the plan
    device: str = "cpu"
    threads: int = 1


S = TypeVar("S", bound=ActorSettings)


class PartActor(ABC, Generic[S]):
    """Holds the model; the map function of the job, see `make_blocks`."""

    def __init__(self, settings: S) -> None:
        torch.set_num_threads(1)
        self.settings = settings

    @abstractmethod
    def load(self) -> tuple[PartWriter, str]:
        """The model, and its digest."""

    @functools.cached_property
    def writer(self) -> PartWriter:
        """Loaded at the first block, so that what is wrong with it comes back as one line."""
        writer, digest = self.load()
        if digest != self.settings.digest:
            raise UserError(f"{self.source} changed while the job ran")
        return writer

    @property
    @abstractmethod
    def source(self) -> str:
        """The model in words."""

    @functools.cached_property
    def groups(self) -> RowGroups | None:
        return None if self.settings.shards is None else RowGroups(open_dataset(self.settings.shards))

    def make(self, index: int) -> ShardResult:
        output = self.settings.output
        if self.groups is not None:
            return self.writer.write_shard(self.groups, index, output)
        return self.writer.write_files(read_block(output, index), index, output)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return make_blocks(batch, self.settings.output, self.make)
