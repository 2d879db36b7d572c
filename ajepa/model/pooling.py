"""From windows of patches to embeddings of clips: which windows cover a clip, the average where they overlap, pooling.

Shape legend: B clips, R rows (frequency bands) and C columns (16 frames) of patches, D width, W windows, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


@dataclass(frozen=True)
class PoolingMethod:
    """One way to make a vector of a clip's patches: of their moments over some axes of [..., R, C, D]."""

    size: Callable[[int], int]  # of the vector, in widths of the encoder, by the number of rows R
    over: tuple[int, ...]
    std: bool  # beside the mean


METHODS: dict[Pooling, PoolingMethod] = {
    "mean": PoolingMethod(lambda rows: 1, (-3, -2), False),  # over all patches
    "mean+std": PoolingMethod(lambda rows: 2, (-3, -2), True),  # and their standard deviation
    # Over time alone, each row of patches (a frequency band) by itself: its mean, then its standard deviation.
    "bands mean+std": PoolingMethod(lambda rows: 2 * rows, (-2,), True),
}


def pool(tokens: Tensor, valid: Tensor, pooling: Pooling) -> Tensor:
    """Pool patch embeddings [B, (L,) R, C, D] over the valid columns [B, C]: [B, (L,) D'].

    Raises:
        UserError: an unknown pooling.
    """
    return pool_parts([(tokens, valid)], (pooling,))[pooling]


def pool_parts(parts: Iterable[tuple[Tensor, Tensor]], poolings: Sequence[Pooling]) -> dict[Pooling, Tensor]:
    """As `pool` of tokens that come as one part of the columns after the other; memory holds one part.

    Raises:
        UserError: an unknown pooling.
    """
    for pooling in poolings:
        require(pooling in METHODS, f"pooling is one of {', '.join(METHODS)}, not {pooling!r}")
    axes = {METHODS[pooling].over for pooling in poolings}
    found: dict[tuple[int, ...], Moments] = {}
    for tokens, valid in parts:
        weight = valid.reshape(len(valid), *[1] * (tokens.ndim - 3), -1, 1).to(tokens.dtype)
        for over in axes:
            moments = Moments.of(tokens, weight, over)
            found[over] = found[over].merged(moments) if over in found else moments
    return {pooling: found[METHODS[pooling].over].vector(METHODS[pooling]) for pooling in poolings}


class Moments(NamedTuple):
    """Weighted mean and variance over some axes, which keep the length 1."""

    weight: Tensor  # in all
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, tokens: Tensor, weight: Tensor, over: tuple[int, ...]) -> "Moments":
        """Of tokens [..., R, C, D] with weights [..., 1, C, 1]; 0 where there is no weight."""
        weight = weight.expand(*tokens.shape[:-1], 1) if -3 in over else weight
        total = weight.sum(dim=over, keepdim=True)
        mean = (tokens * weight).sum(dim=over, keepdim=True) / total.clamp_min(1)
        variance = ((tokens - mean).square() * weight).sum(dim=over, keepdim=True) / total.clamp_min(1)
        return cls(total, mean, variance)

    def merged(self, other: "Moments") -> "Moments":
        """Of both together (Chan, Golub and LeVeque, 1983)."""
        total = self.weight + other.weight
        share = other.weight / total.clamp_min(1)
        step = other.mean - self.mean
        variance = self.variance + (other.variance - self.variance + step.square() * (1 - share)) * share
        return Moments(total, self.mean + step * share, variance)

    def vector(self, method: PoolingMethod) -> Tensor:
        """[..., D'] for tokens [..., R, C, D]. A spread of 0 has the gradient 0, not infinity."""
        mean = self.mean.squeeze(method.over)
        if not method.std:
            return mean
        std = torch.where(self.variance > 0, self.variance, 1).sqrt() * (self.variance > 0)
        both = torch.cat([mean, std.squeeze(method.over)], dim=-1)
        return both if -3 in method.over else both.flatten(-2)  # of bands [B, R, 2 D]


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


def sum_overlaps(tokens: Tensor, place: Tensor, batch: int, columns: int) -> tuple[Tensor, Tensor]:
    """[W, L, R, window, D] at places [W, window] of B * C columns -> sums [B, C, L * R * D] and counts [B, C, 1]."""
    flat = tokens.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1)  # [W * window, L * R * D]
    place = place.flatten()
    total = flat.new_zeros(batch * columns, flat.shape[1]).index_add(0, place, flat)
    count = flat.new_zeros(batch * columns, 1).index_add(0, place, flat.new_ones(len(flat), 1))
    return total.unflatten(0, (batch, columns)), count.unflatten(0, (batch, columns))
