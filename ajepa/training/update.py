"""One optimizer update, shared by pretraining and fine-tuning: micro-batches, clipping, and skipping what is not
finite."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ajepa.training.async_metrics import GPU_LAG, Clips, MetricsOwner, enqueue_metrics, resolve_metrics


class Updated(MetricsOwner, Protocol):
    """What of a training state an update advances."""

    optimizer: torch.optim.Optimizer


def wrap_ddp(core: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """The model that averages gradients over workers; the model itself where there is one worker."""
    if world_size == 1:
        return core
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(core, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False)


def micro_batches(model: nn.Module, share: int, size: int) -> Iterator[slice]:
    """The clips of a worker's share, at most `size` at a time. With several workers, gradients are averaged over them
    in the backward pass of the last part alone."""
    for start in range(0, share, size):
        waits = isinstance(model, DistributedDataParallel) and start + size < share
        with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            yield slice(start, start + size)


def update(
    state: Updated, inputs: Clips, parameters: Iterable[nn.Parameter], loss: Tensor, grad_clip: float, stop: int
) -> Tensor:
    """Clip the gradient and step the optimizer; returns the gradient norm before clipping. On a GPU nothing here waits
    for the device.

    Args:
        loss: of this worker's share.
        grad_clip: largest gradient norm; 0 turns clipping off.
        stop: this worker's request to stop.

    Raises:
        NonFiniteLoss: the weights are untouched; on a GPU it is raised GPU_LAG steps later, and weights and
            optimizer skipped the step.
    """
    state.scaler.unscale_(state.optimizer)
    grad_norm = nn.utils.clip_grad_norm_(parameters, grad_clip or float("inf"))
    enqueue_metrics(state, inputs, loss, grad_norm, stop)
    # A host that has read the loss knows; one that runs ahead lets the device skip the update.
    resolve_metrics(state, GPU_LAG if state.device.type == "cuda" else 0)
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return grad_norm
