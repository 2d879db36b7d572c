"""Distance between predicted and target representations (sec. 4.5, ablated in sec. 9)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def normalise_targets(layers: Tensor | list[Tensor]) -> Tensor:
    """LayerNorm without affine parameters over the last axis; of a list, the mean of the normalised layers."""
    if isinstance(layers, Tensor):
        return F.layer_norm(layers, layers.shape[-1:])
    total = F.layer_norm(layers[0], layers[0].shape[-1:])
    for layer in layers[1:]:
        total = total + F.layer_norm(layer, layer.shape[-1:])
    return total / len(layers)


def prediction_loss(
    prediction: Tensor,
    target: Tensor,
    kind: Literal["smooth_l1", "l1", "mse", "cosine"] = "smooth_l1",
    beta: float = 1.0,
) -> Tensor:
    """Mean loss over samples, target patches and dimensions, in float32 or wider.

    smooth_l1 is the write-up's Huber loss with threshold `beta`; cosine is 1 - cosine similarity.

    Args:
        prediction, target: [B, M, D].
    """
    if prediction.dtype != torch.float64:
        prediction, target = prediction.float(), target.float()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target, beta=beta)
    if kind == "l1":
        return F.l1_loss(prediction, target)
    if kind == "mse":
        return F.mse_loss(prediction, target)
    return (1 - F.cosine_similarity(prediction, target, dim=-1)).mean()
