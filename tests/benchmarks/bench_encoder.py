"""Embeddings from waveforms on the CPU against the matmul rate of the same run. Run with `make bench`."""

import numpy as np
import pytest
import torch
from benchmarks.common import ROUNDS, say, seconds

from ajepa.audio.statistics import Statistics
from ajepa.config import PRESETS, FrontEndConfig
from ajepa.inference.pretrained import random_encoder
from ajepa.model.flops import encoder_pass
from ajepa.model.vit import patchify
from ajepa.training.flops import gemm_rate
from pipelines.cli.arguments import usable_cpus

CPU = torch.device("cpu")
BATCH = 8


@pytest.fixture(autouse=True)
def all_threads():
    torch.set_num_threads(usable_cpus())
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("preset", ["base", "small", "nano"])
def test_clip_embeddings_against_matmul(preset):
    """Model FLOPs a second of clip_embeddings, front end included, over the rate of a 4096-cube."""
    config = PRESETS[preset]
    encoder = random_encoder(config.model, 0, FrontEndConfig(), Statistics(np.full(128, -4.0), np.full(128, 3.0), 1))
    clips = BATCH * 1024 // config.model.crop_frames  # as much sound for each
    samples = config.model.crop_frames * 160 - 160
    waveform = torch.randn(clips, samples) * 0.1
    work = clips * encoder_pass(config.model, config.model.num_patches, trained=False)
    log_mel, _ = encoder.log_mels(waveform, 16_000)
    assert log_mel.shape[-1] == config.model.crop_frames
    parts = patchify(encoder.normalise(log_mel))
    encoder(waveform, 16_000), encoder.encoder(parts)
    rates, bare, front, bf16 = [], [], [], []
    for _ in range(ROUNDS):
        gemm = gemm_rate(CPU, torch.float32, 4096, 1)
        took = seconds(lambda: encoder(waveform, 16_000))
        rates.append(work / took / gemm)
        bare.append(seconds(lambda: encoder.encoder(parts)) / took)
        front.append(seconds(lambda: encoder.log_mels(waveform, 16_000)) / took)
        if torch.cpu._is_avx512_bf16_supported():
            encoder.precision = "bf16"
            bf16.append(took / seconds(lambda: encoder(waveform, 16_000)))
            encoder.precision = "fp32"
    what = f"{preset}, {clips} clips of {samples / 16_000:.2f} s"
    say(f"{what}: model FLOPs of clip embeddings over the fp32 matmul rate", rates, f"{took:.2f} s")
    say(f"{what}: the bare ViT's time over ours", bare)
    say(f"{what}: share of the front end", front)
    if bf16:
        say(f"{what}: speed in bf16 over fp32", bf16)
    assert min(rates) > 0
