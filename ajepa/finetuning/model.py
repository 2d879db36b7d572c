"""The fine-tuned model: an encoder and one linear layer on its pooled patches; its learning rates and its loss."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.choices import Pooling
from ajepa.finetuning.config import FinetuneConfig
from ajepa.inference.encoder import AudioEncoder
from ajepa.model.pooling import METHODS


class Classifier(nn.Module):
    """Log-mels to logits. It takes a copy of the encoder, whose parameters all learn.

    The head sees (features - shift) / scale; both are fixed, 0 and 1 unless `start_from` sets them.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, audio: AudioEncoder, num_classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.audio, self.pooling = copy.deepcopy(audio).requires_grad_(True), pooling
        self.head = nn.Linear(METHODS[pooling].size(audio.rows) * audio.width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(self.head.in_features), persistent=False)
        self.register_buffer("scale", torch.ones(self.head.in_features), persistent=False)

    def forward(
        self, log_mel: Tensor, num_frames: np.ndarray, key_mask: Callable[[int, int], Tensor] | None = None
    ) -> Tensor:
        """[B, n_mels, T] raw log-mels of [B] valid frames -> logits [B, C] float32.

        The frames are an array: DDP would move a tensor to the device.
        """
        return self.head((self.features(log_mel, num_frames, key_mask) - self.shift) / self.scale)

    def features(
        self, log_mel: Tensor, num_frames: np.ndarray, key_mask: Callable[[int, int], Tensor] | None = None
    ) -> Tensor:
        """The pooled patches, [B, D']."""
        return self.audio.pooled(log_mel, num_frames, (self.pooling,), key_mask=key_mask)[self.pooling]

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor) -> None:
        """Take a head [C, D'], [C] for features standardised with `shift` and `scale` [D']."""
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def plain_head(self) -> dict[str, Tensor]:
        """Weight and bias for the features as they are."""
        weight = self.head.weight.detach() / self.scale
        return {"weight": weight, "bias": self.head.bias.detach() - weight @ self.shift}

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the names checkpoints use: "encoder.*" and "head.*"."""
        return ((name.removeprefix("audio."), parameter) for name, parameter in self.named_parameters())


def layer_of(name: str, depth: int) -> int:
    """How deep a parameter lies: 0 patch embedding and positions, 1..depth the blocks, depth + 1 norm and head."""
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1 if name.startswith(("encoder.norm.", "head.")) else 0


def parameter_groups(model: Classifier, config: FinetuneConfig) -> list[dict[str, object]]:
    """Groups for AdamW: "peak_lr" and "is_head" beside its own keys. Weight decay only on matrices of linear layers."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    depth = model.audio.depth
    for name, parameter in model.named_weights():
        is_head = name.startswith("head.")
        lr = (
            config.head_lr if is_head else config.encoder_lr * config.layer_decay ** (depth + 1 - layer_of(name, depth))
        )
        decay = config.weight_decay if parameter.ndim > 1 and not name.endswith("positions") else 0.0
        groups.setdefault((lr, decay, is_head), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay, "is_head": is_head}
        for (lr, decay, is_head), parameters in groups.items()
    ]


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool, smoothing: float = 0.0) -> Tensor:
    """Mean over clips of cross-entropy, or of binary cross-entropy averaged over the classes.

    Args:
        logits, targets: [B, C]; targets may be mixtures.
        smoothing: share of a target that goes to all classes alike (for several labels: to one half).
    """
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets * (1 - smoothing) + 0.5 * smoothing)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)
