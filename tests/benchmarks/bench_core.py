"""Ratios against a peer or a floor measured in the same run: front end, masks and training step.

Run with `make bench`. Absolute figures of a shared machine mean little; the ratios and their spread do.
"""

import numpy as np
import pytest
import torch
import torchaudio
from benchmarks.common import ROUNDS, paired, say, seconds
from training.test_step import make_state

from ajepa.audio.logmel import LogMel
from ajepa.config import PRESETS, FrontEndConfig, MaskConfig
from ajepa.model.masking import sample_masks
from ajepa.shards.reader import Batch
from ajepa.shards.statistics import Statistics
from ajepa.training.step import Normaliser, TrainState, build_model, build_optimizer, train_step


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


def test_masks_a_second():
    samples = np.arange(256)
    rates = [256 / seconds(lambda: sample_masks(MaskConfig(), (8, 64), 0, samples), 3) for _ in range(ROUNDS)]
    say("masks a second on one core", rates)
    assert min(rates) > 0


def flops(config) -> float:
    """Multiply-adds of one clip's step times two: target forward, context forward and backward, predictor."""
    model, n = config.model, config.model.num_patches
    targets = round(config.mask.mask_ratio * n)

    def forward(tokens: int, depth: int, width: int) -> float:
        return depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)

    encoder = forward(n, model.depth, model.width) + 3 * forward(n - targets, model.depth, model.width)
    return encoder + 3 * forward(n, model.predictor_depth, model.predictor_width)


@pytest.mark.parametrize(("preset", "batch"), [("nano", 64), ("small", 8)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_against_gemm(preset, batch, precision):
    """Model FLOPs of a step over the fp32 GEMM rate of the same threads."""
    torch.set_num_threads(torch.get_num_threads())
    config = PRESETS[preset]
    train = {"precision": precision, "batch_size": batch}
    config = type(config)(
        model=config.model, mask=config.mask, train=type(config.train)(**(vars(config.train) | train))
    )
    core = build_model(config)
    state = TrainState(
        config, core, core, build_optimizer(core, config.train),
        Normaliser(Statistics(np.zeros(128), np.ones(128), 1)), torch.device("cpu"), 10_000,
    )  # fmt: skip
    data = np.random.default_rng(0).normal(size=(batch, 128, config.model.crop_frames)).astype(np.float16)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    ids = np.arange(batch)
    train_step(state, Batch(data, ids, ids))
    ratios = []
    for _ in range(ROUNDS):
        gemm = 2 * 2048**3 / seconds(lambda: a @ b, 3)
        step = batch * flops(config) / seconds(lambda: train_step(state, Batch(data, ids, ids)), 2)
        ratios.append(step / gemm)
    say(f"{preset} step, {precision}, batch {batch}: model FLOPs over the fp32 GEMM rate", ratios)
    assert min(ratios) > 0


def test_ema_and_optimizer_share():
    state = make_state()
    whole = seconds(
        lambda: train_step(state, Batch(np.zeros((8, 128, 128), np.float16), np.arange(8), np.arange(8))), 10
    )
    ema = [seconds(lambda: state.core.update_target(0.999), 10) / whole for _ in range(ROUNDS)]
    say("EMA, share of a (very small) step", ema)
    assert max(ema) < 1
