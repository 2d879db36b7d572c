"""Watching a loss without waiting for it: metrics of a step, the workers' requests to stop, and who is to blame for a
value that is not finite. Pretraining and fine-tuning share it."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ajepa.errors import UserError

GPU_LAG = 2  # steps the host may run ahead of a GPU before it looks at a loss


class NonFiniteLoss(UserError):
    """The loss or a gradient is NaN or infinite; the message names the step. `rows` are the dataset rows to blame,
    empty when the fault lies in another worker's share."""

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.message, self.rows = message, rows

    def __reduce__(self) -> tuple[type, tuple[str, tuple[int, ...]]]:  # crosses process borders
        return type(self), (self.message, self.rows)


class Clips(Protocol):
    """What a step was given."""

    @property
    def log_mel(self) -> Tensor: ...
    @property
    def rows(self) -> np.ndarray: ...


@dataclass
class PendingMetrics:
    """A step whose metrics may still be on their way from the device."""

    step: int
    inputs: Clips
    values: Tensor  # [loss, gradient norm, stop request], on the host
    event: torch.cuda.Event | None  # set once they are there


class MetricsOwner(Protocol):
    """What of a training state is read and written here."""

    step: int
    world_size: int
    device: torch.device
    scaler: torch.amp.GradScaler
    pending: deque[PendingMetrics]
    stop_request: int


def weighted(loss: Tensor, weight: float) -> Tensor:
    """`loss * weight`, with a gradient that is NaN in every parameter if the loss is not finite.

    A compiled backward pass can lose a NaN (the sign of NaN is 0 in Inductor's code): the gradient norm would be finite
    and the device would apply the step. The factor carries it to all parameters, and DDP to all workers.
    """
    return loss * (weight + 0 * loss.detach())


def enqueue_metrics(state: MetricsOwner, inputs: Clips, loss: Tensor, grad_norm: Tensor, stop: int) -> None:
    """Note loss, gradient norm and the workers' stop requests; on a GPU they are copied to the host asynchronously."""
    request = torch.full((), float(stop), device=state.device)
    if state.world_size > 1:
        dist.all_reduce(request, dist.ReduceOp.MAX)
    seen = torch.stack([loss, grad_norm.detach().float(), request])
    event = None
    if state.device.type == "cuda":
        host = torch.empty(3, pin_memory=True)
        host.copy_(seen, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        seen = host
    state.pending.append(PendingMetrics(state.step, inputs, seen, event))


def resolve_metrics(state: MetricsOwner, lag: int = 0) -> None:
    """Look at the metrics of all but the last `lag` steps, and note their stop requests.

    Raises:
        NonFiniteLoss: one of them was not finite.
    """
    while len(state.pending) > lag:
        seen = state.pending.popleft()
        if seen.event is not None:
            seen.event.synchronize()
        loss, grad_norm, request = seen.values.tolist()
        state.stop_request = max(state.stop_request, int(request))
        # With fp16 a gradient may overflow: the scaler skips the step and lowers its scale.
        if not np.isfinite(loss) or not (np.isfinite(grad_norm) or state.scaler.is_enabled()):
            raise _blame(seen, loss, grad_norm)


def _blame(seen: PendingMetrics, loss: float, grad_norm: float) -> NonFiniteLoss:
    what = f"step {seen.step}: loss {loss:g}, gradient norm {grad_norm:g}"
    poisoned = ~torch.isfinite(seen.inputs.log_mel.float()).flatten(1).all(dim=1).cpu().numpy()
    if poisoned.any():
        rows = tuple(int(r) for r in seen.inputs.rows[poisoned])
        return NonFiniteLoss(f"{what}; log-mels that are not finite in dataset rows {list(rows)}", rows)
    if np.isfinite(loss):
        return NonFiniteLoss(f"{what}; the loss of this worker's clips is finite (lower --lr, or see another worker)")
    rows = tuple(int(r) for r in seen.inputs.rows)
    return NonFiniteLoss(
        f"{what}; its log-mels are finite, so lower --lr; dataset rows of the batch: {list(rows)}", rows
    )


def out_of_memory(state: MetricsOwner, batch_size: int, micro_batch: int) -> UserError:
    """The error where a GPU has too little memory for a worker's share of a step: a restart would fail again.

    Args:
        batch_size: clips a step of all workers.
        micro_batch: clips computed at a time; 0 is the whole share.
    """
    share = -(-batch_size // state.world_size)
    at_once = min(micro_batch or share, share)
    advice = (
        f"--micro-batch {at_once // 2} computes the same gradient in smaller parts"
        if at_once > 1
        else "it needs a smaller model, shorter clips or a GPU with more memory"
    )
    return UserError(f"step {state.step}: out of GPU memory with {at_once} clips at a time: {advice}")


def require_agreement(state: MetricsOwner, step: int) -> None:
    """Check that all workers see the same newest step.

    Raises:
        UserError: they found different checkpoints.
    """
    if state.world_size == 1:
        return
    steps = torch.tensor([step, -step], device=state.device)
    dist.all_reduce(steps, dist.ReduceOp.MAX)
    highest, lowest = int(steps[0]), -int(steps[1])
    if highest != lowest:
        raise UserError(
            f"the workers found checkpoints of different steps ({lowest} to {highest}): --output must be a folder that "
            "all machines share, or a URI"
        )
