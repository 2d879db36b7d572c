"""The log-mel front end of an A-JEPA encoder, as a part of the model: waveform in, normalised log-mel out."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_ajepa import AJepaConfig

BAND = 8  # mel filters in a band; divides every number of them
PIECE = 1 << 13  # frames of log-mel made at a time


def mel_filters(config: AJepaConfig) -> Tensor:
    """Triangular filters [n_mels, bins of the FFT] on Slaney's mel scale (Auditory Toolbox, 1998), unit peak: 200/3 Hz
    a mel below 1 kHz, logarithmic above."""
    step = math.log(6.4) / 27

    def mel(hz: float) -> float:
        return hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) / step

    mels = torch.linspace(mel(config.f_min), mel(config.f_max), config.num_mel_bins + 2, dtype=torch.float32)
    edges = torch.where(mels < 15, 200 / 3 * mels, 1000 * torch.exp(step * (mels - 15)))[:, None]
    bins = torch.linspace(0, config.sampling_rate // 2, config.n_fft // 2 + 1, dtype=torch.float32)
    widths = edges.diff(dim=0)
    return torch.minimum((bins - edges[:-2]) / widths[:-1], (edges[2:] - bins) / widths[1:]).clamp_min(0)


class AJepaFrontEnd(nn.Module):
    """Waveform [S] to normalised log-mels [n_mels, T] in float32, whatever type the model is cast to.

    Frame t is centred on sample t * hop_length, and the ends are mirrored. Log-mels are rounded to float16, as those
    that the encoder was trained on.
    """

    window: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: AJepaConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # transformers builds models where tensors have no values
            filters = mel_filters(config)
            left = (config.n_fft - config.win_length) // 2
            hann = torch.hann_window(config.win_length, dtype=torch.float32)
            window = F.pad(hann, (left, config.n_fft - config.win_length - left))
        used = [row.nonzero().flatten().tolist() for row in filters]
        # (first and last filter, first and last column of `filters`), ends excluded: filters cover few bins
        self.bands = [
            (i, i + BAND, 2 * min(u[0] for u in used[i : i + BAND]), 2 * max(u[-1] for u in used[i : i + BAND]) + 2)
            for i in range(0, config.num_mel_bins, BAND)
        ]
        # All in the state dict: of what is not, transformers 5 leaves the values undefined.
        self.register_buffer("window", window)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=1).contiguous())  # of real, imaginary parts
        self.register_buffer("mean", torch.zeros(config.num_mel_bins, 1, dtype=torch.float32))
        self.register_buffer("std", torch.ones(config.num_mel_bins, 1, dtype=torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> "AJepaFrontEnd":
        """Moves, but does not cast: in half precision a log-mel would be wrong in its second digit."""

        def moved(tensor: Tensor) -> Tensor:
            result: Tensor = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)
        return self

    @torch.no_grad()
    def windows(self, waveform: Tensor, starts: list[int], length: int) -> Iterator[Tensor]:
        """So many frames from each of these on, which ascend; the mean (0) stands behind the end of the sound. Of hours
        of sound memory holds a piece or two."""
        pieces = self.pieces(waveform)
        held, first = next(pieces), 0
        for start in starts:
            while held.shape[1] < start + length - first:
                following = next(pieces, None)
                if following is None:
                    held = F.pad(held, (0, start + length - first - held.shape[1]))
                else:
                    held, first = torch.cat([held[:, start - first :], following], dim=1), start
            yield held[:, start - first : start - first + length]

    def pieces(self, waveform: Tensor) -> Iterator[Tensor]:
        """Normalised log-mels [n_mels, T] of one piece after the other."""
        config, hop = self.config, self.config.hop_length
        if len(waveform) < shortest(config):
            waveform = F.pad(waveform, (0, shortest(config) - len(waveform)))  # silence follows
        samples, frames = len(waveform), frame_count(config, len(waveform))
        margin = -(-config.n_fft // 2 // hop) + 1
        first = 0
        while first < frames:  # the last piece takes what is left
            last = frames if first + 2 * PIECE > frames else first + PIECE
            begin = max(0, first - margin)
            piece = self.log_mel(waveform[begin * hop : samples if last == frames else (last + margin) * hop].float())
            yield (piece[:, first - begin : last - begin].half().float() - self.mean) / self.std
            first = last

    def log_mel(self, waveform: Tensor) -> Tensor:
        config, half = self.config, self.config.n_fft // 2
        with torch.autocast(waveform.device.type, enabled=False):
            mirrored = torch.cat([waveform[1 : half + 1].flip(0), waveform, waveform[-half - 1 : -1].flip(0)])
            frames = mirrored.unfold(0, config.n_fft, config.hop_length) * self.window  # [T, n_fft]
            squares = torch.view_as_real(torch.fft.rfft(frames)).square().flatten(1)  # [T, 2 * bins]
            mel = [self.filters[a:b, low:high] @ squares[:, low:high].T for a, b, low, high in self.bands]
            return torch.log(torch.cat(mel) + config.log_epsilon)


def shortest(config: AJepaConfig) -> int:
    """Samples of the shortest waveform: one window, and what its ends are mirrored from."""
    return int(max(config.win_length, config.n_fft // 2 + 1))


def frame_count(config: AJepaConfig, samples: int) -> int:
    """Frames of log-mel of so many samples."""
    return int(1 + max(samples, shortest(config)) // config.hop_length)
