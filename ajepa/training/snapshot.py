"""A training state to and from a checkpoint; what a checkpoint's files hold stands in `ajepa.checkpoints`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ajepa.checkpoints import (
    FORMAT_VERSION,
    MODEL,
    OPTIMIZER,
    CheckpointInfo,
    Snapshot,
    describe,
    load_newest,
    newest_step,
    read_info,
    read_tensors,
    read_weights,
)
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.training.async_metrics import MetricsOwner, require_agreement
from ajepa.training.step import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, beside its "step"
T = TypeVar("T")


def snapshot(
    state: TrainState, dataset: ShardDataset, reader: dict[str, Any], report: dict[str, Any] | None = None
) -> Snapshot:
    """Copy everything a run needs to go on, or an encoder to be used.

    Args:
        reader: the state of its stream of clips.
        report: of this step, for a run that is killed before that report is recorded.
    """
    weights = state.core.state_dict()
    moments = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    files = host_copies({MODEL: weights, OPTIMIZER: moments})
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "total_steps": state.total_steps,
        "reader": reader | {"step": state.step},  # it may be a batch ahead
        "scaler": state.scaler.state_dict(),
        "config": state.config.to_dict(),
        "report": report or {},
        "dataset_hash": dataset.content_hash,
        **describe(dataset.front_end, dataset.statistics),
    }
    return Snapshot(state.step, files, manifest)


def optimizer_moments(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """What AdamW keeps of named parameters, as OPTIMIZER holds it."""
    return {
        f"{name}.{key}": value for name, parameter in parameters for key, value in optimizer.state[parameter].items()
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
    _go_on_from(info, state)
    return info


def _go_on_from(info: CheckpointInfo, state: TrainState) -> None:
    if info.scaler and state.scaler.is_enabled():
        state.scaler.load_state_dict(info.scaler)
    state.step = info.step


def resume(run: str, state: TrainState) -> CheckpointInfo | None:
    """Load the newest intact checkpoint of a run into the state of every worker; None where there is none yet.

    Raises:
        UserError: there are checkpoints and none is intact, or the workers see different ones.
    """
    info = read_once(run, state, lambda folder: restore(folder, state))
    if info is not None and state.world_size > 1:
        parameters = list(state.core.trained_parameters())
        _go_on_from(info, state)
        share([*state.core.state_dict().values(), *shared_moments(parameters, state.optimizer)])
    return info


def read_once(run: str, state: MetricsOwner, load: Callable[[str], T]) -> T | None:
    """What `load` makes of the newest intact checkpoint, see `load_newest`. Rank 0 alone reads it: a large one costs
    the store one reading, not one a GPU. What `load` put into its state is to be sent to the others with `share`."""
    require_agreement(state, newest_step(run))
    if state.world_size == 1:
        return load_newest(run, load)
    answer: list[Any] = [None, ""]
    if dist.get_rank() == 0:
        try:
            answer[0] = load_newest(run, load)
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0, device=state.device)
    if answer[1]:
        raise UserError(answer[1])
    found: T | None = answer[0]
    return found


@torch.no_grad()
def share(tensors: Iterable[torch.Tensor]) -> None:
    """Copy rank 0's tensors to all workers."""
    for tensor in tensors:  # no temporaries: gloo's thread would need Python's lock to free one
        dist.broadcast(tensor, src=0)


def shared_moments(
    parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer
) -> list[torch.Tensor]:
    """What AdamW keeps of named parameters, made where another rank has loaded it."""
    for _, parameter in parameters:
        if dist.get_rank() != 0:
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in MOMENTS
            }
    return [optimizer.state[parameter][key] for _, parameter in parameters for key in ("step", *MOMENTS)]


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
        for key in ("step", *MOMENTS):
            value = moments.pop(f"{name}.{key}", None)
            if value is None or (key != "step" and value.shape != parameter.shape):
                raise UserError(f"{folder!r} holds another optimizer state: {name}.{key} is missing or misshapen")
            own[key] = value.to(parameter.device)
        optimizer.state[parameter] = own
    if moments:
        raise UserError(f"{folder!r} holds another optimizer state: unknown {sorted(moments)[:3]}")


def host_copies(files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """Copies in host memory that later steps leave alone, of tensors by name in files by name. A GPU is waited for
    once."""
    copies = {file: {name: _start_copy(tensor) for name, tensor in own.items()} for file, own in files.items()}
    for device in {tensor.device for own in files.values() for tensor in own.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def _start_copy(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_cuda:
        return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # kept by torch for the next snapshot
    return pinned.copy_(tensor.detach(), non_blocking=True)
