"""Normalisation of log-mels by the statistics of a dataset."""

from typing import Any

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
            value = torch.tensor(getattr(statistics, name), dtype=torch.float32)[:, None]  # Ray's arrays are read-only
            self.register_buffer(name, value)  # in the state dict: weights mean nothing without them

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        """What is exported must be what is computed with."""
        before = self.mean.clone(), self.std.clone()
        super()._load_from_state_dict(*args, **options)
        if not (torch.equal(self.mean, before[0]) and torch.equal(self.std, before[1])):
            mean, std = (value[:, 0].double().cpu().numpy() for value in (self.mean, self.std))
            self.statistics = Statistics(mean, std, self.statistics.frames)

    def forward(self, log_mel: Tensor) -> Tensor:
        return (log_mel.to(self.mean.dtype) - self.mean) / self.std
