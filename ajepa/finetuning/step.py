"""The fine-tuning step and its state. Nothing here knows about Ray, files or logging."""

import copy
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ajepa.config import PATCH
from ajepa.finetuning.augment import key_mask, mask_spans, mix
from ajepa.finetuning.clips import Inputs
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.model import Classifier, classification_loss, parameter_groups
from ajepa.finetuning.schedule import Schedule
from ajepa.inference.encoder import AudioEncoder
from ajepa.model.optimizer import AdamW, ema_update
from ajepa.model.precision import CPU_PATCHES, has_bf16
from ajepa.training.async_metrics import PendingMetrics, weighted
from ajepa.training.update import micro_batches, update, wrap_ddp


@dataclass
class FinetuneState:
    """Everything a step reads and advances. `model` may be wrapped (DDP); `core` is the classifier inside."""

    config: FinetuneConfig
    core: Classifier
    model: nn.Module
    average: Classifier | None  # of the weights, with `ema`
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    multi_label: bool
    device: torch.device
    world_size: int = 1
    step: int = 0  # steps done
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    pending: deque[PendingMetrics] = field(default_factory=deque)
    stop_request: int = 0  # the largest of all workers so far, the same on all of them

    @property
    def scored(self) -> Classifier:
        """Whose scores count, and whose weights are kept."""
        return self.core if self.average is None else self.average


def build_state(
    config: FinetuneConfig,
    model: Classifier,
    schedule: Schedule,
    multi_label: bool,
    device: torch.device,
    world_size: int = 1,
) -> FinetuneState:
    """A state at step 0 that takes the model over. With several workers, torch.distributed must be initialised;
    rank 0's weights are everybody's."""
    core = model.to(device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
    core.audio.precision = "bf16" if bf16 else "fp32"
    optimizer = AdamW(parameter_groups(core, config), betas=config.betas, fused=True)
    wrapped = wrap_ddp(core, device, world_size)
    average = copy.deepcopy(core).requires_grad_(False) if config.ema else None
    return FinetuneState(config, core, wrapped, average, optimizer, schedule, multi_label, device, world_size)


@dataclass(frozen=True)
class StepResult:
    """Metrics of one step. Tensors stay on the device until someone reads them."""

    loss: Tensor  # mean over this worker's share
    grad_norm: Tensor  # before clipping
    encoder_lr: float  # of the topmost layer
    head_lr: float


def train_step(state: FinetuneState, inputs: Inputs, *, stop: int = 0) -> StepResult:
    """Advance the state by one step: forward, backward, clipped AdamW update, average of the weights.

    The gradient is that of the mean over the whole batch, independent of the workers' shares and micro-batches.

    Args:
        inputs: this worker's share, on the device.
        stop: this worker's request to stop; the largest of all workers ends up in `state.stop_request`.

    Raises:
        NonFiniteLoss: as in pretraining.
    """
    config, schedule = state.config, state.schedule
    factors = schedule.encoder_factor(state.step), schedule.factor(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factors[group["is_head"]]
    state.optimizer.zero_grad(set_to_none=True)
    loss = _accumulate(state, inputs)
    grad_norm = update(state, inputs, state.core.parameters(), loss, config.grad_clip, stop)
    if state.average is not None:
        momentum = min(config.ema, (1 + state.step) / (10 + state.step))  # forgets the start
        ema_update(state.average, state.core, momentum)
    state.step += 1
    return StepResult(loss, grad_norm, config.encoder_lr * factors[0], config.head_lr * factors[1])


def _accumulate(state: FinetuneState, inputs: Inputs) -> Tensor:
    """Gradients of this worker's share, in micro-batches; its mean loss."""
    config, share, audio = state.config, len(inputs.log_mel), state.core.audio
    log_mel, num_frames, targets = inputs.log_mel, inputs.mixed_frames, inputs.targets
    if config.mixup:
        log_mel, targets = mix(log_mel, inputs.num_frames, targets, inputs.draws.weight)
    if config.time_masks or config.frequency_masks:
        log_mel = mask_spans(log_mel, audio.normalise.mean, inputs.draws.time, inputs.draws.frequency)
    size = config.micro_batch or (share if state.device.type == "cuda" else fitting_clips(audio, log_mel.shape[-1]))
    total = torch.zeros((), device=state.device)
    for part in micro_batches(state.model, share, size):
        keys = key_mask(config, inputs.samples[part], num_frames[part], audio.rows)
        logits = state.model(log_mel[part], num_frames[part], keys)
        loss = classification_loss(logits, targets[part], state.multi_label, config.label_smoothing)
        clips = len(logits)
        # DDP averages over workers with equal weight; this makes it the mean over the batch's clips.
        weighted(loss, clips * state.world_size / config.batch_size).backward()
        total = total + loss.detach() * (clips / share)
    return total


def fitting_clips(audio: AudioEncoder, frames: int) -> int:
    """Clips of so many frames a CPU computes at a time: more need more memory and are no faster."""
    return max(1, CPU_PATCHES // (audio.rows * -(-frames // PATCH)))
