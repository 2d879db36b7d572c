"""Every default of the project: frozen dataclasses and the presets built from them.

Numbers like "spec 6" point to the specification in README.md beside this file.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ajepa.choices import LossName, ObjectiveName, Placement
from ajepa.config_json import from_dict, upgraded
from ajepa.errors import require

TargetNorm = Literal["layer", "instance"]
TrainPrecision = Literal["auto", "bf16", "fp16", "fp32"]
Compile = Literal["auto", "on", "off"]
MaskStrategy = Literal["multiblock", "single_block", "random", "time", "frequency", "time_frequency", "curriculum"]

PATCH = 16  # side of a square patch, in mel bins and in frames (spec 2)


def _require_choice(name: str, value: object, choices: Any) -> None:
    require(value in get_args(choices), f"{name} is one of {', '.join(get_args(choices))}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """Waveform to log-mel (spec 2)."""

    sample_rate: int = 16_000
    """Sample rate everything is resampled to, in Hz."""
    n_fft: int = 512
    """FFT size, in samples."""
    win_length: int = 400
    """Hann window, in samples (25 ms)."""
    hop_length: int = 160
    """Hop between frames, in samples (10 ms)."""
    n_mels: int = 128
    """Mel bins, a multiple of 16."""
    f_min: float = 0.0
    """Lowest frequency of the filterbank, in Hz."""
    f_max: float = 8_000.0
    """Highest frequency of the filterbank, in Hz."""
    log_epsilon: float = 1e-6
    """Added to the mel power before the natural logarithm."""
    clip_frames: int = 1024
    """Frames stored for a clip, a multiple of 16 (1024 = 10.24 s): longer audio is cut, shorter is padded."""

    def __post_init__(self) -> None:
        require(self.sample_rate > 0 and self.hop_length > 0, "sample_rate and hop_length must be positive")
        require(0 < self.win_length <= self.n_fft, "win_length must be positive and at most n_fft")
        require(self.n_mels > 0 and self.n_mels % PATCH == 0, f"n_mels={self.n_mels} is not a multiple of {PATCH}")
        require(
            self.clip_frames > 0 and self.clip_frames % PATCH == 0,
            f"clip_frames={self.clip_frames} is not a multiple of {PATCH}",
        )
        require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"need 0 <= f_min < f_max <= {self.sample_rate / 2:g} Hz, got {self.f_min:g} and {self.f_max:g}",
        )
        require(self.log_epsilon > 0, "log_epsilon must be positive")

    @property
    def clip_samples(self) -> int:
        """Samples that give exactly `clip_frames` frames with centred windows."""
        return (self.clip_frames - 1) * self.hop_length + self.hop_length - 1

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def min_samples(self) -> int:
        """Samples of the shortest waveform: one window, and what its ends are mirrored from."""
        return max(self.win_length, self.n_fft // 2 + 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and predictor."""

    n_mels: int = 128
    """Mel bins of the input, a multiple of 16."""
    crop_frames: int = 1024
    """Frames of the window the model sees, a multiple of 16. Shorter than a clip: random crops in training."""
    depth: int = 12
    """Encoder layers."""
    width: int = 768
    """Encoder dimension D."""
    heads: int = 12
    """Encoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of an MLP block over the width, in encoder and predictor."""
    predictor_depth: int = 6
    """Predictor layers."""
    predictor_width: int = 384
    """Predictor dimension, the bottleneck."""
    predictor_heads: int = 12
    """Predictor attention heads."""

    def __post_init__(self) -> None:
        for name in ("n_mels", "crop_frames"):
            value = getattr(self, name)
            require(
                value > 0 and value % PATCH == 0,
                f"{name}={value} is not a multiple of the patch side {PATCH}: the grid would not divide",
            )
        for width, heads in ((self.width, self.heads), (self.predictor_width, self.predictor_heads)):
            require(heads > 0 and width % heads == 0, f"width {width} is not divisible by {heads} heads")
        require(self.width % 4 == 0 and self.predictor_width % 4 == 0, "widths must be multiples of 4 (positions)")
        require(self.depth > 0 and self.predictor_depth > 0, "depth and predictor_depth must be positive")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return self.n_mels // PATCH, self.crop_frames // PATCH

    @property
    def num_patches(self) -> int:
        rows, columns = self.grid
        return rows * columns


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Masks in the time-frequency plane (spec 6); what each strategy does is in model/masking.py."""

    strategy: MaskStrategy = "multiblock"
    """Shape of the masks: the blocks of spec 6, others of spec 10, or the curriculum from random blocks."""
    mask_ratio: float = 0.7
    """Share of patches that are targets, met exactly (spec 10 finds 0.7 best)."""
    block_scale: tuple[float, float] = (0.15, 0.2)
    """Area of a block or strip as a share of the grid, drawn uniformly; as many are placed as the ratio takes, with
    the defaults four or five."""
    block_aspect: tuple[float, float] = (0.75, 1.5)
    """Time over frequency side of a block on the normalised grid, drawn uniformly."""
    placement: Placement = "wrap"
    """Where blocks may lie: around both edges (every patch equally likely) or inside the grid (literal)."""
    candidates: int = 8
    """Places drawn for each block; the one that covers most new patches is kept. 1 is a plain draw."""
    time_frequency_blocks: int = 3
    """Blocks from which a time-frequency aware mask grows."""
    time_frequency_scale: tuple[float, float] = (0.05, 0.075)
    """Area of such a block as a share of the grid, drawn uniformly."""

    def __post_init__(self) -> None:
        _require_choice("strategy", self.strategy, MaskStrategy)
        _require_choice("placement", self.placement, Placement)
        require(0 < self.mask_ratio < 1, f"masking ratio {self.mask_ratio} is not between 0 and 1")
        for name in ("candidates", "time_frequency_blocks"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for low, high in (self.block_scale, self.time_frequency_scale):
            require(0 < low <= high < 1, f"block scale {(low, high)} is not within (0, 1)")
        require(
            0 < self.block_aspect[0] <= self.block_aspect[1],
            f"aspect range {self.block_aspect} is not ascending and positive",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation (spec 8)."""

    objective: ObjectiveName = "jepa"
    """What the encoder is trained for: A-JEPA or another method (ajepa/objectives/)."""
    batch_size: int = 256
    """Clips a step over all workers (the effective batch)."""
    epochs: int = 300
    """Passes over the dataset."""
    max_steps: int | None = None
    """Stop at this many steps if that is fewer than the epochs; schedules span the shortened run."""
    warmup_epochs: float = 40
    """Linear warm-up of the learning rate, in epochs of `epochs`; shortened in proportion by `max_steps`."""
    lr: float = 1.5e-4
    """Peak learning rate of AdamW."""
    final_lr: float = 1e-6
    """Learning rate at the end of the cosine decay."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not applied to biases, norms, positions and the mask token."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's beta1, beta2."""
    ema_start: float = 0.996
    """EMA momentum of the target encoder at the first step."""
    ema_end: float = 0.9999
    """EMA momentum at the last step (cosine in between)."""
    grad_clip: float = 3.0
    """Largest gradient norm; 0 turns clipping off."""
    loss: LossName = "smooth_l1"
    """Distance between prediction and target representations (spec 7)."""
    smooth_l1_beta: float = 1.0
    """Threshold between the quadratic and the linear part of smooth L1."""
    target_layers: int = 1
    """Targets are the mean of the last K layers' outputs, each layer-normed; 1 is spec 7."""
    target_norm: TargetNorm = "layer"
    """Normalisation of targets: over dimensions (spec 7), or over the patches of a clip first."""
    masks_per_clip: int = 1
    """Masks drawn for each clip; the target encoder runs once for all of them."""
    micro_batch: int = 0
    """Clips a worker computes at a time; gradients accumulate over its share of the batch. 0: all at once on a GPU, as
    many as make 4096 patches on a CPU."""
    precision: TrainPrecision = "auto"
    """Arithmetic of the forward pass; weights stay in float32. auto: bf16 where the device multiplies it natively.
    fp16 scales the loss dynamically."""
    compile: Compile = "auto"
    """torch.compile of the model; auto: on a GPU."""
    seed: int = 0
    """Seed of the weights, the data order, the crops and the masks."""
    log_every: int = 20
    """Steps between reports of the loss."""
    eval_every: int = 100
    """Steps between measurements on a fixed set of crops: effective rank, online probe, pictures."""
    holdout: int = 0
    """Clips never trained on, whose crops the effective rank is measured on; 0: crops of training clips."""
    stop_on_collapse: bool = False
    """Stop the run with an error when the verdict is "collapsing"; without it, the verdict is only printed."""
    checkpoint_every: int = 250
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 3
    """Checkpoints kept: the newest ones, and the one with the best online probe beside them."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "epochs",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "target_layers",
        ):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name, choices in (
            ("objective", ObjectiveName),
            ("loss", LossName),
            ("target_norm", TargetNorm),
            ("precision", TrainPrecision),
            ("compile", Compile),
        ):
            _require_choice(name, getattr(self, name), choices)
        require(self.max_steps is None or self.max_steps > 0, f"max_steps must be positive, got {self.max_steps}")
        require(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs must lie between 0 and epochs")
        require(0 <= self.ema_start <= self.ema_end <= 1, "need 0 <= ema_start <= ema_end <= 1")
        require(self.lr > 0 and self.final_lr >= 0, "lr must be positive and final_lr not negative")
        require(0 <= self.seed < 1 << 63, f"seed must lie between 0 and 2^63 - 1, got {self.seed}")
        require(self.masks_per_clip > 0, "masks_per_clip must be positive")
        require(self.micro_batch >= 0 and self.holdout >= 0, "micro_batch and holdout must not be negative")
        require(self.grad_clip >= 0 and self.weight_decay >= 0, "grad_clip and weight_decay must not be negative")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One pretraining run: model, masks and optimisation."""

    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require(
            self.train.target_layers <= self.model.depth,
            f"target_layers={self.train.target_layers} exceeds the encoder's {self.model.depth} layers",
        )
        targets = round(self.mask.mask_ratio * self.model.num_patches)
        require(
            0 < targets < self.model.num_patches,
            f"masking ratio {self.mask.mask_ratio} leaves no context or no target on the grid {self.model.grid}",
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Rebuild a config read from JSON. Unknown or missing keys raise UserError naming them."""
        parts = {"model": ModelConfig, "mask": MaskConfig, "train": TrainConfig}
        require(set(values) == set(parts), f"a config has the parts {sorted(parts)}, this one {sorted(values)}")
        values = upgraded(values)
        return cls(**{name: from_dict(kind, values[name]) for name, kind in parts.items()})


def _small_data(**changes: Any) -> TrainConfig:
    """Recipe for hundreds to thousands of clips on a few CPU cores (found as ajepa/evaluation/README.md says)."""
    values: dict[str, Any] = {
        "batch_size": 64, "epochs": 2000, "warmup_epochs": 200, "max_steps": 12000, "lr": 1e-3, "ema_end": 0.999,
        "target_layers": 4, "eval_every": 250, "checkpoint_every": 500,
    }  # fmt: skip
    return TrainConfig(**(values | changes))


PRESETS: dict[str, Config] = {
    "nano": Config(
        model=ModelConfig(
            crop_frames=128, depth=4, width=192, heads=3,
            predictor_depth=2, predictor_width=96, predictor_heads=3,
        ),
        mask=MaskConfig(placement="inside"),
        train=_small_data(),
    ),
    "tiny": Config(
        model=ModelConfig(
            crop_frames=256, depth=6, width=192, heads=3,
            predictor_depth=3, predictor_width=96, predictor_heads=3,
        ),
        mask=MaskConfig(placement="inside"),
        train=_small_data(max_steps=6000),
    ),
    "small": Config(
        model=ModelConfig(depth=12, width=384, heads=6, predictor_depth=6, predictor_width=192, predictor_heads=6)
    ),
    "base": Config(),
    "large": Config(
        model=ModelConfig(depth=24, width=1024, heads=16, predictor_depth=8, predictor_width=512, predictor_heads=16)
    ),
}  # fmt: skip
