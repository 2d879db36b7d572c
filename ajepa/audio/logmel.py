"""The front end: waveform to log-mel (sec. 4.6). Deterministic for a clip whatever it is batched with."""

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.audio.decode import AudioError
from ajepa.config import FrontEndConfig


def filterbank(config: FrontEndConfig) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, n_mels] on the Slaney mel scale, unit peak.

    The HTK scale would leave one of 128 filters without an FFT bin at n_fft 512: a constant channel with
    standard deviation 0. Slaney's is linear below 1 kHz and leaves none; that is checked.

    Raises:
        ValueError: some filter covers no FFT bin.
    """
    filters = torchaudio.functional.melscale_fbanks(
        n_freqs=config.n_fft // 2 + 1,
        f_min=config.f_min,
        f_max=config.f_max,
        n_mels=config.n_mels,
        sample_rate=config.sample_rate,
        norm=None,
        mel_scale="slaney",
    )
    empty = (filters.sum(dim=0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"mel filters {empty} cover no FFT bin: use fewer n_mels than {config.n_mels} or a larger n_fft"
        )
    return filters


class LogMel(nn.Module):
    """log(mel power + epsilon) of a waveform: [..., samples] -> [..., n_mels, 1 + samples // hop_length].

    Frame t is centred on sample t * hop_length (the ends are mirrored), so its time is t * hop / rate.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.config = config
        left = (config.n_fft - config.win_length) // 2
        window = F.pad(torch.hann_window(config.win_length), (left, config.n_fft - config.win_length - left))
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filterbank(config).T.contiguous(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        config = self.config
        half = config.n_fft // 2
        if waveform.shape[-1] < config.win_length:
            raise AudioError(f"waveform: {waveform.shape[-1]} samples, shorter than one window of {config.win_length}")
        flat = waveform.reshape(-1, 1, waveform.shape[-1])
        padded = F.pad(flat, (half, half), mode="reflect").squeeze(1)
        frames = padded.unfold(-1, config.n_fft, config.hop_length) * self.window  # [b, frames, n_fft]
        spectrum = torch.view_as_real(torch.fft.rfft(frames))
        power = spectrum.square_().sum(dim=-1)  # [b, frames, n_fft // 2 + 1]
        mel = self.filters @ power.transpose(1, 2)  # [b, n_mels, frames]
        return mel.add_(config.log_epsilon).log_().reshape(*waveform.shape[:-1], *mel.shape[1:])
