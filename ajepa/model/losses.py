"""Distance between predicted and target representations (spec 7, ablated in spec 10)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa.choices import LossName


def normalise_targets(layers: Tensor | list[Tensor], norm: Literal["layer", "instance"] = "layer") -> Tensor:
    """Targets [B, N, D] from the target encoder's last layer, or from a list of its last K layers.

    - layer: LayerNorm without affine parameters over D (spec 7), the mean over layers.
    - instance: each dimension is standardised over the patches of a clip first, so that what all of them share (and a
      predictor could say without looking) is no target; the mean over layers is layer-normed. Instance normalisation
      of targets is that of data2vec (Baevski et al., arXiv:2202.03555).
    """
    each = layers if isinstance(layers, list) else [layers]
    if norm == "layer":
        return _mean([F.layer_norm(x, x.shape[-1:]) for x in each])
    mean = _mean([F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in each])
    return F.layer_norm(mean, mean.shape[-1:])


def _mean(layers: list[Tensor]) -> Tensor:
    total = layers[0]
    for layer in layers[1:]:
        total = total + layer
    return total / len(layers)


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in float32, float64 ones as they are."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def prediction_errors(
    prediction: Tensor,
    target: Tensor,
    loss_name: LossName = "smooth_l1",
    beta: float = 1.0,
) -> Tensor:
    """Loss of each sample and target patch [B, M], the mean over dimensions, in float32 or wider; see spec 7.

    smooth_l1 is the Huber loss with threshold `beta`; cosine is 1 - cosine similarity.

    Args:
        prediction, target: [B, M, D].
    """
    prediction, target = in_float32(prediction, target)
    if loss_name == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=-1)
    if loss_name == "smooth_l1":
        errors = F.smooth_l1_loss(prediction, target, beta=beta, reduction="none")
    elif loss_name == "l1":
        errors = F.l1_loss(prediction, target, reduction="none")
    else:
        errors = F.mse_loss(prediction, target, reduction="none")
    return errors.mean(dim=-1)
