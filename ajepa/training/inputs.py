"""From a reader's batch to what a step takes: masks drawn, tensors pinned and copied while the last step computes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from ajepa.config import Config
from ajepa.model.masking import sample_masks
from ajepa.shards.reader import Batch


@dataclass(frozen=True)
class Inputs:
    """A worker's share of a step: b clips, m masks of each."""

    log_mel: Tensor  # [b, n_mels, crop_frames] float16, raw
    context: Tensor  # [b * m, K] int64, the masks of a clip in succession
    targets: Tensor  # [b * m, M] int64
    rows: np.ndarray  # [b] rows of the dataset

    def part(self, start: int, stop: int) -> "Inputs":
        """Clips start..stop-1 with their masks."""
        if start == 0 and stop >= len(self.log_mel):
            return self
        masks = len(self.context) // len(self.log_mel)
        masked = slice(start * masks, stop * masks)
        return Inputs(self.log_mel[start:stop], self.context[masked], self.targets[masked], self.rows[start:stop])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_mel, self.context, self.targets

    def with_tensors(self, *tensors: Tensor) -> "Inputs":
        log_mel, context, targets = tensors
        return Inputs(log_mel, context, targets, self.rows)


def mask_batch(config: Config, samples: np.ndarray, total_steps: int) -> tuple[Tensor, Tensor]:
    """Masks of a batch: m = masks_per_clip for each sample, in succession, as (context, targets) indices.

    How far the run has come is computed from the sample's place in the stream, so a resumed curriculum goes on exactly.
    """
    masks = config.train.masks_per_clip
    ids = (samples[:, None] * masks + np.arange(masks)).reshape(-1)
    progress = np.minimum(ids // (masks * config.train.batch_size) / total_steps, 1.0)
    context, targets = sample_masks(config.mask, config.model.grid, config.train.seed, ids, progress)
    return torch.from_numpy(np.ascontiguousarray(context)), torch.from_numpy(np.ascontiguousarray(targets))


def prepare(config: Config, batch: Batch, total_steps: int, pin: bool = False) -> Inputs:
    """Draw the masks of a batch and wrap it in tensors; with `pin`, in memory that a GPU copies from asynchronously."""
    tensors = torch.from_numpy(batch.log_mel), *mask_batch(config, batch.samples, total_steps)
    log_mel, context, targets = (t.pin_memory() if pin else t for t in tensors)
    return Inputs(log_mel, context, targets, batch.rows)


class OnHost(Protocol):
    """A batch of tensors in host memory, and how to make the same of tensors elsewhere."""

    def tensors(self) -> tuple[Tensor, ...]: ...
    def with_tensors(self, *tensors: Tensor) -> Self: ...


B = TypeVar("B", bound=OnHost)


def on_device(batches: Iterable[B], device: torch.device) -> Iterator[B]:
    """The batches on the device. On a GPU each is copied on a stream of its own while the one before it computes."""
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)

    def copy(inputs: B) -> tuple[B, torch.cuda.Event]:
        with torch.cuda.stream(side):
            copies = [t.to(device, non_blocking=True) for t in inputs.tensors()]
            done = torch.cuda.Event()
            done.record(side)
        return inputs.with_tensors(*copies), done

    def hand_over(copied: tuple[B, torch.cuda.Event]) -> B:
        inputs, done = copied
        compute = torch.cuda.current_stream(device)
        compute.wait_event(done)
        for tensor in inputs.tensors():
            tensor.record_stream(compute)  # its memory belongs to the side stream's pool
        return inputs

    ahead = None
    for inputs in batches:
        copied = copy(inputs)
        if ahead is not None:
            yield hand_over(ahead)
        ahead = copied
    if ahead is not None:
        yield hand_over(ahead)
