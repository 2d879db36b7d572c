"""The training loop: from a checkpoint or the start to the last step. Who reports to whom is the caller's affair."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ajepa.config import Config
from ajepa.model.schedules import total_steps
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.training.checkpoint import (
    checkpoint_path,
    find_checkpoint,
    prune_checkpoints,
    restore,
    save_checkpoint,
)
from ajepa.training.diagnostics import representation_health
from ajepa.training.step import Normaliser, TrainState, build_model, build_optimizer, train_step

FIXED_CLIPS = 256  # of the fixed set that health is measured on
FIXED_STEP = 1 << 40  # its place in the sample stream, never reached by training


@dataclass
class WorkerContext:
    """What a training process knows of the others."""

    rank: int
    world_size: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]  # called by every rank equally often, with figures of that rank


def build_state(config: Config, dataset: ShardDataset, worker: WorkerContext) -> TrainState:
    core = build_model(config).to(worker.device)
    model: nn.Module = core
    if worker.world_size > 1:
        ids = [worker.device.index] if worker.device.type == "cuda" else None
        model = DistributedDataParallel(core, device_ids=ids, gradient_as_bucket_view=True)
    return TrainState(
        config=config,
        core=core,
        model=model,
        optimizer=build_optimizer(core, config.train),
        normalise=Normaliser(dataset.statistics).to(worker.device),
        device=worker.device,
        total_steps=total_steps(config.train, dataset.num_clips),
    )


def train(config: Config, dataset: ShardDataset, output: str, worker: WorkerContext) -> None:
    """Train from the newest intact checkpoint of `output`, or from the start, to the last step.

    Raises:
        UserError: `output` has checkpoints, and none is intact.
        NonFiniteLoss: a batch that cannot be trained on.
    """
    state = build_state(config, dataset, worker)
    checkpoint = find_checkpoint(output)
    if checkpoint is not None:
        restore(checkpoint, state)
    reader = ShardReader(
        dataset,
        crop_frames=config.model.crop_frames,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    fixed = fixed_crops(dataset, config, state) if worker.rank == 0 else None
    every = config.train
    losses, began, began_step = [], time.perf_counter(), state.step
    if state.step == 0:
        worker.report({**_health(state, fixed), "step": 0, "total_steps": state.total_steps})
    for batch in reader.batches(state.step, state.total_steps):
        result = train_step(state, batch)
        losses.append(result.loss)
        last = state.step == state.total_steps
        measure, save = state.step % every.eval_every == 0, state.step % every.checkpoint_every == 0
        if not (last or measure or save or state.step % every.log_every == 0):
            continue
        seconds = (time.perf_counter() - began) / (state.step - began_step)
        report = {
            "step": state.step,
            "total_steps": state.total_steps,
            "loss": torch.stack(losses).mean().item(),
            "grad_norm": result.grad_norm.item(),
            "prediction_std": result.prediction_std.item(),
            "target_std": result.target_std.item(),
            "lr": result.lr,
            "ema": result.ema,
            "seconds_per_step": seconds,
            "clips_per_second": every.batch_size / seconds,
        }
        if last or measure:
            report |= _health(state, fixed)
        if (last or save) and worker.rank == 0:
            save_checkpoint(checkpoint_path(output, state.step), state, dataset)
            prune_checkpoints(output, every.keep_checkpoints)
        worker.report(report)
        losses, began, began_step = [], time.perf_counter(), state.step


def fixed_crops(dataset: ShardDataset, config: Config, state: TrainState) -> torch.Tensor:
    """A fixed set of crops, [<= 256, n_mels, crop_frames] normalised, on the device."""
    count = min(FIXED_CLIPS, dataset.num_clips)
    reader = ShardReader(dataset, crop_frames=config.model.crop_frames, batch_size=count, seed=config.train.seed)
    return state.normalise(torch.from_numpy(reader.batch(FIXED_STEP // count).log_mel).to(state.device))


def _health(state: TrainState, fixed: torch.Tensor | None) -> dict[str, float]:
    return {} if fixed is None else representation_health(state.core.target_encoder, fixed)
