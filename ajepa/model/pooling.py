"""From windows of patches to embeddings of clips: which windows cover a clip, the average where they overlap, pooling.

Shape legend: B clips, R rows (frequency bands) and C columns (16 frames) of patches, D width, W windows, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ajepa.choices import Pooling
from ajepa.config import PATCH
from ajepa.errors import require


class WeightedLayers(nn.Module):
    """Learned sum of layers, softmax-weighted (as SUPERB, arXiv:2105.01051, does): [B, L, ...] -> [B, ...]."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, stacked: Tensor) -> Tensor:
        return torch.tensordot(self.weights.softmax(dim=0), stacked.movedim(1, 0), dims=1)


def _mean(tokens: Tensor, weight: Tensor) -> Tensor:
    return _moments(tokens, weight.expand(*tokens.shape[:-1], 1), (-3, -2))[0]


def _mean_std(tokens: Tensor, weight: Tensor) -> Tensor:
    return torch.cat(_moments(tokens, weight.expand(*tokens.shape[:-1], 1), (-3, -2)), dim=-1)


def _bands_mean_std(tokens: Tensor, weight: Tensor) -> Tensor:
    return torch.cat(_moments(tokens, weight, (-2,)), dim=-1).flatten(-2)  # moments [B, R, D]


@dataclass(frozen=True)
class PoolingMethod:
    """One way to make a vector of a clip's patches."""

    size: Callable[[int], int]  # of the vector, in widths of the encoder, by the number of rows R
    function: Callable[[Tensor, Tensor], Tensor]  # [..., R, C, D] and weights [..., 1, C, 1] -> [..., size * D]


METHODS: dict[Pooling, PoolingMethod] = {
    "mean": PoolingMethod(lambda rows: 1, _mean),  # over all patches
    "mean+std": PoolingMethod(lambda rows: 2, _mean_std),  # and their standard deviation
    # Over time alone, each row of patches (a frequency band) by itself: its mean, then its standard deviation.
    "bands mean+std": PoolingMethod(lambda rows: 2 * rows, _bands_mean_std),
}


def pool(tokens: Tensor, valid: Tensor, pooling: Pooling) -> Tensor:
    """Pool patch embeddings [B, (L,) R, C, D] over the valid columns [B, C]: [B, (L,) D'].

    Raises:
        UserError: an unknown pooling.
    """
    require(pooling in METHODS, f"pooling is one of {', '.join(METHODS)}, not {pooling!r}")
    weight = valid.reshape(len(valid), *[1] * (tokens.ndim - 3), -1, 1).to(tokens.dtype)
    return METHODS[pooling].function(tokens, weight)


def _moments(tokens: Tensor, weight: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over the axes `over`. A spread of 0 has the gradient 0, not infinity."""
    count = weight.sum(dim=over, keepdim=True)
    mean = (tokens * weight).sum(dim=over, keepdim=True) / count
    variance = ((tokens - mean).square() * weight).sum(dim=over, keepdim=True) / count
    std = torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)
    return mean.squeeze(over), std.squeeze(over)


def valid_columns(num_frames: Tensor) -> Tensor:
    """Valid columns of clips of so many valid frames: those of which at least half is sound, at least one."""
    return ((num_frames + PATCH // 2) // PATCH).clamp_min(1)


def cover(columns: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """(clip [W], first column [W]) of the windows that cover clips of so many columns [B] evenly, in order."""
    count = (-(-columns // window)).clamp_min(1)
    clip = torch.repeat_interleave(torch.arange(len(columns), device=columns.device), count)
    first = torch.cumsum(count, dim=0) - count
    number = torch.arange(len(clip), device=columns.device) - first[clip]
    slack = (columns - window).clamp_min(0)[clip]
    return clip, number * slack // (count[clip] - 1).clamp_min(1)


def overlap_average(tokens: Tensor, place: Tensor, batch: int, columns: int) -> Tensor:
    """[W, L, R, window, D] at the places [W, window] of B * C columns -> [B, L, R, C, D]."""
    _, layers, rows, _, width = tokens.shape
    flat = tokens.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1)  # [W * window, L * R * D]
    place = place.flatten()
    total = flat.new_zeros(batch * columns, flat.shape[1]).index_add(0, place, flat)
    count = flat.new_zeros(batch * columns).index_add(0, place, flat.new_ones(len(flat)))
    mean = total / count.clamp_min(1)[:, None]
    return mean.reshape(batch, columns, layers, rows, width).permute(0, 2, 3, 1, 4)
