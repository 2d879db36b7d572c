"""The training step and its state. Nothing here knows about Ray, files or logging."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ajepa.config import Config, TrainConfig
from ajepa.errors import UserError
from ajepa.model.ajepa import AJEPA
from ajepa.model.masking import sample_masks
from ajepa.model.schedules import ema_momentum, learning_rate
from ajepa.shards.reader import Batch
from ajepa.shards.statistics import Statistics


class NonFiniteLoss(UserError):
    """The loss or a gradient is NaN or infinite; the message names the step."""


class Normaliser(nn.Module):
    """(log_mel - mean) / std per mel bin, in float32 on the device: [B, n_mels, T] of any float type."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.statistics = statistics
        for name in ("mean", "std"):
            value = torch.from_numpy(getattr(statistics, name)).float()[:, None]
            self.register_buffer(name, value, persistent=False)

    def forward(self, log_mel: Tensor) -> Tensor:
        return (log_mel.float() - self.mean) / self.std


@dataclass
class TrainState:
    """Everything a step reads and advances. `model` may be wrapped (DDP); `core` is the AJEPA inside."""

    config: Config
    core: AJEPA
    model: nn.Module
    optimizer: torch.optim.Optimizer
    normalise: Normaliser
    device: torch.device
    total_steps: int
    step: int = 0  # steps done


@dataclass
class StepResult:
    """Figures of one step. Tensors stay on the device until someone reads them."""

    loss: Tensor
    grad_norm: Tensor
    prediction_std: Tensor
    target_std: Tensor
    lr: float
    ema: float


def uses_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs in bfloat16. On a CPU without instructions for it, it would be slower."""
    if config.precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return config.precision == "bf16"


def build_model(config: Config) -> AJEPA:
    """A freshly initialised model; the weights depend on config.train.seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return AJEPA(config)


def build_optimizer(model: AJEPA, config: TrainConfig) -> torch.optim.AdamW:
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
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def mask_batch(config: Config, samples: np.ndarray) -> tuple[Tensor, Tensor]:
    """Masks of a batch: m = masks_per_clip for each sample, in succession, as (context, targets) indices."""
    masks = config.train.masks_per_clip
    ids = (samples[:, None] * masks + np.arange(masks)).reshape(-1)
    context, targets = sample_masks(config.mask, config.model.grid, config.train.seed, ids)
    return torch.from_numpy(np.ascontiguousarray(context)), torch.from_numpy(np.ascontiguousarray(targets))


def train_step(state: TrainState, batch: Batch) -> StepResult:
    """Advance the state by one step: forward, backward, clipped AdamW update, EMA update (sec. 7).

    Raises:
        NonFiniteLoss: before the weights are touched; the state is still good.
    """
    config = state.config.train
    lr = learning_rate(config, state.step, state.total_steps)
    ema = ema_momentum(config, state.step, state.total_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    context, targets = (t.to(state.device, non_blocking=True) for t in mask_batch(state.config, batch.samples))
    log_mel = state.normalise(torch.from_numpy(batch.log_mel).to(state.device, non_blocking=True))
    with torch.autocast(state.device.type, torch.bfloat16, enabled=uses_bf16(config, state.device)):
        loss, prediction, target = state.model(log_mel, context, targets)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for _, p in state.core.trained_parameters()]
    grad_norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip or float("inf"))
    # A NaN anywhere in loss or gradients makes the gradient norm NaN, so one read tells all.
    if not torch.isfinite(grad_norm):
        raise NonFiniteLoss(
            f"step {state.step}: loss {loss.item():g}, gradient norm {grad_norm.item():g}; "
            f"dataset rows of the batch: {batch.rows.tolist()}"
        )
    state.optimizer.step()
    state.core.update_target(ema)
    state.step += 1
    with torch.no_grad():
        stds = [t.detach().float().flatten(0, 1).std(dim=0).mean() for t in (prediction, target)]
    return StepResult(loss.detach(), grad_norm, stds[0], stds[1], lr, ema)
