"""A training state to and from a checkpoint; what a checkpoint's files hold stands in `ajepa.checkpoints`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ajepa.checkpoints import (
    FORMAT_VERSION,
    MODEL,
    OPTIMIZER,
    CheckpointInfo,
    Snapshot,
    describe,
    read_info,
    read_tensors,
    read_weights,
)
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.training.step import TrainState


def snapshot(state: TrainState, dataset: ShardDataset, reader: dict[str, Any]) -> Snapshot:
    """Copy everything a run needs to go on, or an encoder to be used. `reader` is the state of its stream of clips."""
    weights = {name: host_copy(value) for name, value in state.core.state_dict().items()}
    moments = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "total_steps": state.total_steps,
        "reader": reader | {"step": state.step},  # it may have handed over a batch more
        "scaler": state.scaler.state_dict(),
        "config": state.config.to_dict(),
        "dataset_hash": dataset.content_hash,
        **describe(dataset.front_end, dataset.statistics),
    }
    return Snapshot(state.step, {MODEL: weights, OPTIMIZER: moments}, manifest)


def optimizer_moments(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Copies of what AdamW keeps of named parameters, as OPTIMIZER holds them."""
    return {
        f"{name}.{key}": host_copy(value)
        for name, parameter in parameters
        for key, value in optimizer.state[parameter].items()
    }


def restore(folder: str, state: TrainState) -> CheckpointInfo:
    """Load weights, optimizer, loss scale and step into a state of the same architecture; returns the manifest.

    Raises:
        UserError: names or shapes differ.
    """
    info = read_info(folder)
    try:
        state.core.load_state_dict(read_weights(folder), strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder!r} holds another architecture: {error}") from error
    restore_moments(folder, state.core.trained_parameters(), state.optimizer)
    if info.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(info.scaler)
    state.step = info.step
    return info


def restore_moments(
    folder: str, parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> None:
    """Load what AdamW keeps of named parameters from a checkpoint, onto their device.

    Raises:
        UserError: names or shapes differ.
    """
    moments = read_tensors(folder, OPTIMIZER)
    for name, parameter in parameters:
        own = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            value = moments.pop(f"{name}.{key}", None)
            if value is None or (key != "step" and value.shape != parameter.shape):
                raise UserError(f"{folder!r} holds another optimizer state: {name}.{key} is missing or misshapen")
            own[key] = value.to(parameter.device)
        optimizer.state[parameter] = own
    if moments:
        raise UserError(f"{folder!r} holds another optimizer state: unknown {sorted(moments)[:3]}")


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory that later steps leave alone."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
