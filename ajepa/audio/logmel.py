"""The front end: waveform to log-mel (spec 2). Deterministic for a clip whatever it is batched with."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.audio.errors import AudioError
from ajepa.config import FrontEndConfig

HZ_PER_MEL, LINEAR_TO, LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27  # of Slaney's mel scale
PIECE = 1 << 13  # frames made at a time (82 s)
BAND = 8  # mel filters in a band; divides every n_mels


def filterbank(config: FrontEndConfig) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels] on the Slaney mel scale, unit peak.

    The HTK scale would leave one of 128 filters without an FFT bin at n_fft 512: a constant channel with
    standard deviation 0. Slaney's is linear below 1 kHz and leaves none; that is checked.

    Raises:
        ValueError: some filter covers no FFT bin.
    """
    bins = torch.linspace(0, config.sample_rate // 2, config.n_fft // 2 + 1)  # Hz
    edges = mel_to_hz(torch.linspace(hz_to_mel(config.f_min), hz_to_mel(config.f_max), config.n_mels + 2))
    widths = edges.diff()
    rising = (bins[:, None] - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - bins[:, None]) / widths[1:]
    filters = torch.minimum(rising, falling).clamp_min(0)
    empty = (filters.sum(dim=0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"mel filters {empty} cover no FFT bin: use fewer n_mels than {config.n_mels} or a larger n_fft"
        )
    return filters


def hz_to_mel(frequency: float) -> float:
    """Slaney's mel scale (Auditory Toolbox, 1998): 200/3 Hz a mel below LINEAR_TO, logarithmic above."""
    if frequency < LINEAR_TO:
        return frequency / HZ_PER_MEL
    return LINEAR_TO / HZ_PER_MEL + math.log(frequency / LINEAR_TO) / LOG_STEP


def mel_to_hz(mels: Tensor) -> Tensor:
    """The inverse, of a tensor."""
    corner = LINEAR_TO / HZ_PER_MEL
    return torch.where(mels < corner, HZ_PER_MEL * mels, LINEAR_TO * torch.exp(LOG_STEP * (mels - corner)))


class LogMel(nn.Module):
    """log(mel power + epsilon) of a waveform: [..., samples] -> [..., n_mels, 1 + samples // hop_length].

    Frame t is centred on sample t * hop_length (the ends are mirrored), so its time is t * hop / rate. What is shorter
    than one window is followed by silence.

    A mel filter covers few FFT bins, so the filterbank is applied in bands of neighbouring filters, each to the
    bins it covers. It takes the squares of real and imaginary parts as they lie, side by side: their sum, the
    power, is part of the same product.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        left = (config.n_fft - config.win_length) // 2
        window = F.pad(torch.hann_window(config.win_length), (left, config.n_fft - config.win_length - left))
        filters = filterbank(config).T
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, dim=1).contiguous(), persistent=False)
        used = [row.nonzero().flatten().tolist() for row in filters]
        self.bands = [  # (first and last filter, first and last column of `filters`), ends excluded
            (i, i + BAND, 2 * min(u[0] for u in used[i : i + BAND]), 2 * max(u[-1] for u in used[i : i + BAND]) + 2)
            for i in range(0, config.n_mels, BAND)
        ]

    def forward(self, waveform: Tensor) -> Tensor:
        config = self.config
        half = config.n_fft // 2
        if not waveform.shape[-1]:
            raise AudioError("waveform: no samples")
        short = config.min_samples - waveform.shape[-1]
        if short > 0:  # a click of a sample library: silence follows
            waveform = F.pad(waveform, (0, short))
        flat = waveform.reshape(-1, waveform.shape[-1])
        mirrored = torch.cat([flat[:, 1 : half + 1].flip(1), flat, flat[:, -half - 1 : -1].flip(1)], dim=1)
        frames = mirrored.unfold(-1, config.n_fft, config.hop_length) * self.window  # [b, frames, n_fft]
        squares = torch.view_as_real(torch.fft.rfft(frames)).square_().flatten(2)  # [b, frames, 2 * bins]
        mel = squares.new_empty(len(flat), config.n_mels, frames.shape[1])
        for clip, out in zip(squares, mel, strict=True):  # one by one: a GEMM's last digits depend on its size
            for first, last, low, high in self.bands:
                torch.mm(self.filters[first:last, low:high], clip[:, low:high].T, out=out[first:last])
        return mel.add_(config.log_epsilon).log_().reshape(*waveform.shape[:-1], *mel.shape[1:])


@torch.no_grad()
def log_mel_in_pieces(log_mel: LogMel, waveform: Tensor) -> Tensor:
    """Waveforms [B, samples] to log-mels [B, n_mels, T] float16, as shards hold them: hours of sound in pieces that
    overlap by what a frame needs, so memory stays bounded."""
    config, samples = log_mel.config, waveform.shape[-1]
    frames = 1 + samples // config.hop_length
    if frames <= 2 * PIECE:
        return log_mel(waveform).half()
    margin = -(-config.n_fft // 2 // config.hop_length) + 1  # frames
    log_mels = waveform.new_empty((*waveform.shape[:-1], config.n_mels, frames), dtype=torch.float16)
    for first in range(0, frames - PIECE + 1, PIECE):  # the last piece takes what is left
        last = frames if first + 2 * PIECE > frames else first + PIECE
        begin = max(0, first - margin)
        end = samples if last == frames else (last + margin) * config.hop_length
        piece = log_mel(waveform[:, begin * config.hop_length : end])
        log_mels[..., first:last] = piece[..., first - begin : last - begin]
    return log_mels
