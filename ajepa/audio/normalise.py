"""Normalisation of log-mels by the statistics of a dataset."""

import torch
from torch import Tensor, nn

from ajepa.audio.statistics import Statistics


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
        return (log_mel.to(self.mean.dtype) - self.mean) / self.std
