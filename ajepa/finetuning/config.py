"""Every default of fine-tuning. Values marked "spec 9" are those of the specification in ajepa/README.md."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ajepa.choices import POOLINGS, Pooling, Unlabelled
from ajepa.errors import require

HeadInit = Literal["zeros", "probe"]
Refit = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One recipe of fine-tuning; options that the specification does not have are off."""

    pooling: Pooling = "mean"
    """What the head sees of the patches: their mean (spec 9), mean and standard deviation, or both of each band."""
    encoder_lr: float = 1e-5
    """Peak learning rate of the encoder (spec 9)."""
    head_lr: float = 1e-3
    """Peak learning rate of the head (spec 9)."""
    layer_decay: float = 1.0
    """Each layer of the encoder learns so much slower than the one above it; 1 is off."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not applied to biases, norms and positions."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's beta1, beta2."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    epochs: int = 30
    """Passes over the training clips; the learning rate's cosine ends with them."""
    warmup_epochs: float = 3.0
    """Linear warm-up of the learning rates, in epochs."""
    batch_size: int = 32
    """Clips a step over all workers."""
    head_init: HeadInit = "zeros"
    """Start the head at zero, or as the linear probe on the frozen features: then fine-tuning starts with the probe's
    accuracy (LP-FT, Kumar et al., arXiv:2202.10054)."""
    freeze_epochs: float = 0.0
    """Epochs in which the head alone learns."""
    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha) (Zhang et al., arXiv:1710.09412): clips of a batch are mixed in pairs, with
    their labels. 0 is off."""
    time_masks: int = 0
    """Stretches of time that SpecAugment (Park et al., arXiv:1904.08779) sets to the mean of each bin."""
    time_mask_frames: int = 48
    """Longest such stretch, in frames; the length is drawn uniformly."""
    frequency_masks: int = 0
    """Bands of mel bins that SpecAugment sets to their means."""
    frequency_mask_bins: int = 24
    """Widest such band, in mel bins."""
    masked_keys: float = 0.0
    """Share of patches that attention may not look at as keys and values, in every layer, drawn anew each step (the
    regularised masking of arXiv:2311.15830, 0.1 there)."""
    balanced: bool = False
    """Draw clips by the inverse frequency of their labels (AudioSet's custom), with replacement."""
    epoch_clips: int = 0
    """Clips of an epoch with `balanced`; 0: as many as there are to train on."""
    crop_frames: int = 0
    """Frames of a random crop trained on, of clips that are longer; 0: whole clips. Scores come from whole clips."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    ema: float = 0.0
    """Momentum of an exponential moving average of the weights, which is then scored and kept; 0 is off."""
    refit: Refit = "auto"
    """After the number of epochs is chosen, train once more on training and validation clips for so many. auto: where
    the validation clips were taken from the training part, as the linear probe does."""
    unlabelled: Unlabelled = "auto"
    """What clips without a label are: negative counts them as clips of no class, where clips may have several labels;
    drop leaves them out; refuse is an error. auto: negative where clips may have several labels, else refuse."""
    micro_batch: int = 0
    """Clips a worker computes at a time; 0: all at once on a GPU, as many as make 4096 patches on a CPU."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the encoder; auto: bf16 where the device multiplies it natively. Weights stay in float32."""
    seed: int = 0
    """Seed of the clips' order and of everything drawn."""
    log_every: int = 50
    """Steps between reports of the loss within an epoch; every epoch reports at its end."""
    checkpoint_every: int = 0
    """Steps between checkpoints within an epoch; 0: at the end of each epoch alone."""
    keep_checkpoints: int = 1
    """Checkpoints kept: the newest ones, and the one with the best validation score beside them."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in ("encoder_lr", "head_lr"):
            require(
                getattr(self, name) > 0,
                f"{name} must be positive, got {getattr(self, name):g} (the probe is what trains a head alone)",
            )
        for name in (
            "weight_decay", "grad_clip", "warmup_epochs", "freeze_epochs", "mixup", "time_masks", "frequency_masks",
            "epoch_clips", "crop_frames", "micro_batch", "checkpoint_every",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(0 < self.layer_decay <= 1, f"layer_decay must lie in (0, 1], got {self.layer_decay:g}")
        for name in ("masked_keys", "label_smoothing", "ema"):
            require(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), got {getattr(self, name):g}")
        for name in ("warmup_epochs", "freeze_epochs"):
            require(getattr(self, name) <= self.epochs, f"{name} must be at most epochs ({self.epochs})")
        require(self.time_mask_frames > 0 and self.frequency_mask_bins > 0, "the widths of masks must be positive")
        require(self.pooling in POOLINGS, f"pooling is one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        for name, kind in (("head_init", HeadInit), ("refit", Refit), ("unlabelled", Unlabelled)):
            require(getattr(self, name) in get_args(kind), f"{name} is one of {', '.join(get_args(kind))}")
        require(not self.epoch_clips or self.balanced, "epoch_clips is for balanced sampling: add --balanced")
        require(0 <= self.seed < 1 << 62, f"seed must lie between 0 and 2^62 - 1, got {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


PRESETS: dict[str, FinetuneConfig] = {
    "write-up": FinetuneConfig(),
    "small-data": FinetuneConfig(
        pooling="bands mean+std", encoder_lr=5e-4, head_lr=1e-4, head_init="probe", epochs=28, warmup_epochs=2,
        batch_size=16, crop_frames=256, ema=0.99,
    ),
    "from-scratch": FinetuneConfig(
        pooling="bands mean+std", encoder_lr=1e-3, head_lr=1e-3, epochs=60, warmup_epochs=5, batch_size=16,
        crop_frames=256, mixup=0.3, ema=0.99,
    ),
}  # fmt: skip
