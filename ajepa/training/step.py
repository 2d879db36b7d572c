"""The training step and its state. Nothing here knows about Ray, files or logging."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ajepa.audio.normalise import Normaliser
from ajepa.audio.statistics import Statistics
from ajepa.config import Config, TrainConfig
from ajepa.model.optimizer import AdamW
from ajepa.model.precision import CPU_PATCHES, autocast_dtype
from ajepa.objectives.base import Objective, Output
from ajepa.objectives.registry import build_objective
from ajepa.training.async_metrics import PendingMetrics, weighted
from ajepa.training.inputs import Inputs
from ajepa.training.schedules import ema_momentum, learning_rate
from ajepa.training.update import micro_batches, update, wrap_ddp


@dataclass
class TrainState:
    """Everything a step reads and advances. `model` may be wrapped (DDP); `core` is the objective inside."""

    config: Config
    core: Objective
    model: nn.Module
    optimizer: torch.optim.Optimizer
    normalise: Normaliser
    device: torch.device
    total_steps: int
    world_size: int = 1
    step: int = 0  # steps done
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    pending: deque[PendingMetrics] = field(default_factory=deque)
    stop_request: int = 0  # the largest of all workers so far, the same on all of them; on a GPU GPU_LAG steps old


@dataclass
class StepResult:
    """Metrics of one step. Tensors stay on the device until someone reads them."""

    loss: Tensor  # mean over this worker's share
    grad_norm: Tensor  # before clipping
    metrics: dict[str, Tensor]  # of the objective; {} where they were not asked for
    lr: float
    ema: float | None  # None without a teacher


def build_optimizer(model: Objective, config: TrainConfig) -> AdamW:
    """AdamW; weight decay only where it means something: matrices of linear layers."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.trained_parameters():
        is_table = name.endswith(("positions", "mask_token"))
        (plain if parameter.ndim < 2 or is_table else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def build_state(
    config: Config, statistics: Statistics, total_steps: int, device: torch.device, world_size: int = 1
) -> TrainState:
    """A state at step 0. With several workers, torch.distributed must be initialised."""
    core = build_objective(config).to(device)
    optimizer = build_optimizer(core, config.train)
    if config.train.compile == "on" or (config.train.compile == "auto" and device.type == "cuda"):
        core.compile(dynamic=False)  # shapes are static: one compilation for the whole run
    model = wrap_ddp(core, device, world_size)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype(config.train, device) == torch.float16)
    normalise = Normaliser(statistics).to(device)
    return TrainState(config, core, model, optimizer, normalise, device, total_steps, world_size, scaler=scaler)


def train_step(state: TrainState, inputs: Inputs, *, metrics: bool = False, stop: int = 0) -> StepResult:
    """Advance the state by one step: forward, backward, clipped AdamW update, and what the
    objective does then, such as the EMA update (spec 8).

    The gradient is that of the mean over the whole batch. It does not depend on the workers' shares or micro-batches:
    each part counts by its clips. On a GPU nothing here waits for the device.

    Args:
        inputs: this worker's share, on the device.
        metrics: take the objective's metrics as well, on the last clips computed.
        stop: this worker's request to stop; the largest of all workers ends up in `state.stop_request`.

    Raises:
        NonFiniteLoss: the weights are untouched; on a GPU it is raised GPU_LAG steps later, and weights and
            optimizer skipped the step.
    """
    config = state.config.train
    lr = learning_rate(config, state.step, state.total_steps)
    ema = ema_momentum(config, state.step, state.total_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    state.core.begin_step(state.step)
    loss, measured = _accumulate(state, inputs, metrics)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    grad_norm = update(state, inputs, parameters, loss, config.grad_clip, stop)
    state.core.end_step(ema)
    state.step += 1
    return StepResult(loss, grad_norm, measured, lr, ema if state.core.has_teacher else None)


def _accumulate(state: TrainState, inputs: Inputs, metrics: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of this worker's share, in micro-batches; its mean loss, and the metrics of the last one."""
    config, share = state.config.train, len(inputs.log_mel)
    dtype = autocast_dtype(config, state.device)
    size = config.micro_batch or (share if state.device.type == "cuda" else _fitting_clips(state.config))
    total = torch.zeros((), device=state.device)
    measured: dict[str, Tensor] = {}
    for clips in micro_batches(state.model, share, share if state.core.whole_share else size):
        part = inputs.part(clips.start, clips.stop)
        with torch.autocast(state.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            output: Output = state.model(state.normalise(part.log_mel), part.context, part.targets)
        # DDP averages over workers with equal weight; this makes it the mean over the batch's clips.
        weight = len(part.log_mel) * state.world_size / config.batch_size
        state.scaler.scale(weighted(output.loss, weight)).backward()
        total = total + output.loss.detach().float() * (len(part.log_mel) / share)
        if metrics and clips.stop >= share:
            with torch.no_grad():
                measured = state.core.metrics(output)
    return total, measured


def _fitting_clips(config: Config) -> int:
    """Clips a CPU computes at a time: more need more memory (`base` 0.2 GB a clip) and are no faster."""
    return max(1, CPU_PATCHES // (config.model.num_patches * config.train.masks_per_clip))
