"""Labelled clips: their labels in memory, their log-mels from the shards, and which ones a step takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ajepa import counter_rng
from ajepa.errors import UserError
from ajepa.finetuning.augment import AugmentationParams, draw, mixed_frames
from ajepa.finetuning.config import FinetuneConfig
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.labels import Labels
from ajepa.shards.reader import Batch, ShardReader

BALANCE_STREAM = 20  # of counter_rng.uniform


@dataclass(frozen=True)
class Inputs:
    """A worker's share of a step: b clips."""

    log_mel: Tensor  # [b, n_mels, T] float16, raw
    num_frames: Tensor  # [b] int64
    mixed_frames: np.ndarray  # [b] int64 after mixup, on the host: what depends on lengths is worked out there
    targets: Tensor  # [b, C] float32
    draws: AugmentationParams
    rows: np.ndarray  # [b] rows of the dataset
    samples: np.ndarray  # [b] positions in the run's stream

    def tensors(self) -> tuple[Tensor, ...]:
        return self.log_mel, self.num_frames, self.targets, self.draws.weight, self.draws.time, self.draws.frequency

    def with_tensors(self, *tensors: Tensor) -> "Inputs":
        log_mel, num_frames, targets, weight, time, frequency = tensors
        draws = AugmentationParams(weight, time, frequency)
        return Inputs(log_mel, num_frames, self.mixed_frames, targets, draws, self.rows, self.samples)


def prepare(config: FinetuneConfig, labels: Labels, batch: Batch, pin: bool = False) -> Inputs:
    """Look up the labels of a batch and draw for it; with `pin`, in memory that a GPU copies from asynchronously."""
    assert batch.num_frames is not None
    draws = draw(config, batch.samples, batch.num_frames, batch.log_mel.shape[1])
    inputs = Inputs(
        torch.from_numpy(batch.log_mel),
        torch.from_numpy(batch.num_frames),
        mixed_frames(batch.num_frames, draws.weight),
        torch.from_numpy(labels.targets(batch.rows)),
        draws,
        batch.rows,
        batch.samples,
    )
    return inputs.with_tensors(*(t.pin_memory() for t in inputs.tensors())) if pin else inputs


def epoch_rows(config: FinetuneConfig, labels: Labels, rows: np.ndarray) -> Callable[[int], np.ndarray]:
    """Which of `rows` (ascending) an epoch takes: all of them, or with `balanced` some drawn by label frequency."""
    if not config.balanced:
        return lambda _: rows
    count = config.epoch_clips or len(rows)
    reached = np.cumsum(labels.weights(rows), dtype=np.float64)

    def drawn(epoch: int) -> np.ndarray:
        draws = counter_rng.uniform(config.seed, BALANCE_STREAM, epoch * count + np.arange(count), 1)[:, 0]
        chosen = np.searchsorted(reached, draws * reached[-1], side="right")
        return np.sort(rows[np.minimum(chosen, len(rows) - 1)])

    return drawn


def open_reader(
    config: FinetuneConfig, dataset: ShardDataset, labels: Labels, rows: np.ndarray, rank: int, world_size: int
) -> ShardReader:
    """A stream of batches of clips of these rows: whole, or random crops of the longer ones.

    Raises:
        UserError: mixup cannot pair the clips of every worker's share.
    """
    frames = dataset.front_end.clip_frames
    if config.mixup and world_size > 1 and config.batch_size % (2 * world_size):
        raise UserError(f"mixup pairs clips: with {world_size} workers --batch-size is a multiple of {2 * world_size}")
    return ShardReader(
        dataset,
        crop_frames=min(config.crop_frames or frames, frames),
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        repeat=False,
        epoch_rows=epoch_rows(config, labels, rows),
    )
