"""Labelled clips: their labels in memory, their log-mels from the shards, and which ones a step takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from ajepa import counter_rng
from ajepa.errors import UserError
from ajepa.finetuning.augment import AugmentationParams, draw, mixed_frames
from ajepa.finetuning.config import FinetuneConfig
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import Batch, ShardReader

BALANCE_STREAM = 20  # of counter_rng.uniform


@dataclass(frozen=True)
class Labels:
    """The labels of every clip in storage order, as rows of one long list."""

    values: np.ndarray  # int64, label ids
    starts: np.ndarray  # [n + 1] where each clip's begin
    num_classes: int

    @property
    def multi_label(self) -> bool:
        """Whether clips have several: then the loss is binary cross-entropy, else cross-entropy."""
        return bool((np.diff(self.starts) > 1).any())

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """[b, C] float32, 1 for each label of the rows."""
        out = np.zeros((len(rows), self.num_classes), np.float32)
        counts = (self.starts[1:] - self.starts[:-1])[rows]
        clip = np.repeat(np.arange(len(rows)), counts)
        inside = np.arange(len(clip)) - np.repeat(np.cumsum(counts) - counts, counts)
        out[clip, self.values[self.starts[rows][clip] + inside]] = 1
        return out

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Inverse label frequency of rows [b]: the sum over a clip's labels of 1 / clips with that label. No label
        counts as one."""
        targets = self.targets(rows)
        bare = ~targets.any(axis=1)
        return targets @ (1 / np.maximum(targets.sum(axis=0), 1)) + bare / max(1, int(bare.sum()))


def read_labels(dataset: ShardDataset) -> Labels:
    """The labels of a dataset.

    Raises:
        UserError: no clip has one, or ids without a name.
    """
    column = dataset.read_columns(["labels"])["labels"]
    counts = pc.list_value_length(column).to_numpy()
    if not counts.any():
        raise UserError(
            f"no clip in {dataset.path!r} has a label: fine-tuning needs them (preprocess with --labels-from-folders, "
            "or a manifest with labels)"
        )
    values = pc.list_flatten(column).to_numpy().astype(np.int64)
    classes = len(dataset.label_names)
    if classes < 2 or values.max() >= classes or values.min() < 0:
        raise UserError(f"{dataset.path!r} names {classes} labels and has ids up to {values.max()}: preprocess again")
    return Labels(values, np.concatenate([[0], np.cumsum(counts)]), classes)


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
    """Look up the labels of a batch and draw for it; with `pin`, in memory a GPU copies from by itself."""
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
