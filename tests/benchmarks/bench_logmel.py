"""Ratios against a peer or a floor measured in the same run: the front end.

Run with `make bench`. Absolute figures of a shared machine mean little; the ratios and their spread do.
"""

import torch
import torchaudio
from benchmarks.common import paired, say

from ajepa.audio.logmel import LogMel
from ajepa.config import FrontEndConfig


def test_log_mel_against_torchaudio():
    torch.set_num_threads(1)
    waveform = torch.randn(1, 160_000)
    ours = LogMel(FrontEndConfig())
    mel = torchaudio.transforms.MelSpectrogram(16_000, 512, 400, 160, n_mels=128, norm=None, mel_scale="slaney")

    def kaldi() -> torch.Tensor:
        return torchaudio.compliance.kaldi.fbank(waveform, sample_frequency=16_000, num_mel_bins=128, dither=0.0)

    with torch.inference_mode():
        own, ratios = paired(lambda: ours(waveform), lambda: (mel(waveform) + 1e-6).log(), 5)
        say("LogMel, speed over torchaudio MelSpectrogram + log", ratios, f"{own * 1e3:.1f} ms a 10 s clip, one thread")
        _, ratios = paired(lambda: ours(waveform), kaldi, 5)
        say("LogMel, speed over kaldi.fbank", ratios)
    assert min(ratios) > 0
