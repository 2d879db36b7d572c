"""Mixup, SpecAugment and barred keys. What is drawn is a pure function of (seed, sample): it depends neither on the
number of workers nor on what was drawn before, so a resumed run sees the same.

Shape legend: B clips of a worker's share of a step, T frames, C classes, W windows of the encoder, P patches of one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ajepa import counter_rng
from ajepa.finetuning.config import FinetuneConfig
from ajepa.model.pooling import cover, valid_columns

MIX_STREAM, TIME_STREAM, FREQUENCY_STREAM = 16, 17, 18  # of counter_rng.uniform
KEY_STREAM = 19  # window w of a clip draws from the stream KEY_STREAM + 256 w


@dataclass(frozen=True)
class AugmentationParams:
    """What is drawn for each clip."""

    weight: Tensor  # [B, 1] float32, of the clip itself; the rest is its partner's
    time: Tensor  # [B, masks, 2] int64, first frame of each mask and the one after its last
    frequency: Tensor  # [B, masks, 2] int64, in mel bins


def draw(config: FinetuneConfig, samples: np.ndarray, num_frames: np.ndarray, n_mels: int) -> AugmentationParams:
    """Draw for samples [B] of the run's stream, clips of `num_frames` [B] valid frames."""
    weight = np.ones(len(samples))
    if config.mixup:
        # Both clips of a pair take the number of its first one, so a pair gives two mixtures of the same two clips.
        pair = samples.copy()
        pair[1::2] = pair[0 : len(pair) - 1 : 2]
        weight = betaincinv(config.mixup, config.mixup, counter_rng.uniform(config.seed, MIX_STREAM, pair, 1)[:, 0])
        if len(samples) % 2:
            weight[-1] = 1.0
    frames = counter_rng.uniform(config.seed, TIME_STREAM, samples, 2 * config.time_masks)
    bins = counter_rng.uniform(config.seed, FREQUENCY_STREAM, samples, 2 * config.frequency_masks)
    return AugmentationParams(
        torch.from_numpy(weight[:, None].astype(np.float32)),
        _spans(frames, num_frames, config.time_mask_frames),
        _spans(bins, np.full(len(samples), n_mels), config.frequency_mask_bins),
    )


def _spans(draws: np.ndarray, size: np.ndarray, longest: int) -> Tensor:
    """[B, 2 m] uniform numbers -> [B, m, 2] (first, end) of spans of 0..longest within 0..size [B]."""
    length = np.minimum(np.floor(draws[:, 0::2] * (longest + 1)), size[:, None])
    first = np.floor(draws[:, 1::2] * (size[:, None] - length + 1))
    return torch.from_numpy(np.stack([first, first + length], axis=-1).astype(np.int64))


def mixed_frames(num_frames: np.ndarray, weight: Tensor) -> np.ndarray:
    """[B] valid frames after `mix` with the weights [B, 1]: a mixture is as long as the longer of its clips."""
    own = np.arange(len(num_frames))
    partner = np.where(own ^ 1 < len(own), own ^ 1, own)
    return np.where(weight[:, 0].numpy() < 1, np.maximum(num_frames, num_frames[partner]), num_frames)


def mix(log_mel: Tensor, num_frames: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mixup of each pair of neighbours (0, 1), (2, 3), ... with the weights [B, 1] and 1 - weight.

    Log-mels are mixed, not powers: of two sounds added as they are, the louder one would drown the other whatever
    the weights. Behind the end of the shorter clip the other stands alone. Labels are mixed
    with the same weights.

    Args:
        log_mel: [B, n_mels, T] raw log-mels.
        num_frames: [B] valid frames.
        targets: [B, C].
    """
    own = torch.arange(len(weight), device=weight.device)
    partner = own ^ 1
    partner = torch.where(partner < len(weight), partner, own)
    inside = torch.arange(log_mel.shape[-1], device=log_mel.device) < num_frames[:, None]  # [B, T]
    share = torch.where(inside & inside[partner], weight, inside.float())  # of the clip itself, by frame
    share = torch.where(inside | inside[partner], share, 1.0)[:, None]  # both are over: padding
    share = torch.where(weight[:, None] < 1, share, 1.0)
    mixed = share * log_mel.float() + (1 - share) * log_mel[partner].float()
    return mixed, weight * targets + (1 - weight) * targets[partner]


def mask_spans(log_mel: Tensor, mean: Tensor, time: Tensor, frequency: Tensor) -> Tensor:
    """SpecAugment: raw log-mels [B, n_mels, T] with the drawn spans set to the mean [n_mels, 1] of each bin."""
    return torch.where(_inside(time, log_mel.shape[2])[:, None] | _inside(frequency, log_mel.shape[1])[:, :, None],
                       mean.to(log_mel.dtype), log_mel)  # fmt: skip


def _inside(spans: Tensor, size: int) -> Tensor:
    """[B, m, 2] -> [B, size], true within one of the spans."""
    place = torch.arange(size, device=spans.device)
    return ((place >= spans[..., :1]) & (place < spans[..., 1:])).any(dim=1)


def key_mask(
    config: FinetuneConfig, samples: np.ndarray, num_frames: np.ndarray, rows: int
) -> Callable[[int, int], Tensor] | None:
    """`AudioEncoder.tokens`' key_mask for samples [B]: false for a share `masked_keys` of the patches of each window.
    One patch of every column stays, so that no query is left without a key."""
    if not config.masked_keys:
        return None

    def draw_keys(windows: int, patches: int) -> Tensor:
        columns = patches // rows
        clip = cover(valid_columns(torch.from_numpy(num_frames)), columns)[0].numpy()
        number = np.arange(windows) - np.searchsorted(clip, clip)
        uniform = np.empty((windows, patches))
        for w in range(int(number.max()) + 1):
            which = number == w
            uniform[which] = counter_rng.uniform(config.seed, KEY_STREAM + 256 * w, samples[clip[which]], patches)
        grid = uniform.reshape(windows, rows, columns)
        seen = (grid >= config.masked_keys) | (grid == grid.max(axis=1, keepdims=True))
        return torch.from_numpy(seen.reshape(windows, patches))

    return draw_keys
