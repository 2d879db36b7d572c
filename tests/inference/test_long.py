"""Hours of sound: encoded in parts that are held one at a time, equal to what all of it at once gives."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.hub import make_encoder

from ajepa.audio import collector
from ajepa.audio.collector import Collector, resample
from ajepa.audio.errors import AudioError
from ajepa.choices import POOLINGS
from ajepa.inference import windows
from ajepa.inference.encoder import AudioEncoder

FRAMES = [3_000, 2_999, 1_130, 150, 8]  # of log-mel: 187 columns to one


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return make_encoder()


@pytest.fixture(scope="module")
def log_mels() -> torch.Tensor:
    return torch.randn(len(FRAMES), 128, max(FRAMES), generator=torch.Generator().manual_seed(0)) * 3 - 5


@pytest.fixture
def in_parts(encoder, monkeypatch):
    """Calls with all columns at once, then with parts of two windows."""

    def run(work):
        monkeypatch.setattr(windows, "PART_PATCHES", 1 << 30)
        whole = work()
        monkeypatch.setattr(windows, "PART_PATCHES", 1)
        return whole, work()

    return run


def test_parts_equal_the_whole(encoder, log_mels, in_parts):
    frames = torch.tensor(FRAMES)
    (tokens, valid), (in_pieces, valid_in_pieces) = in_parts(lambda: encoder.tokens(log_mels, frames, layers=[1, 2]))
    assert len(list(encoder.parts(log_mels, frames))) > 5
    assert torch.equal(valid, valid_in_pieces)
    torch.testing.assert_close(in_pieces, tokens, rtol=0, atol=2e-6)
    pooled, pooled_in_pieces = in_parts(lambda: encoder.pooled(log_mels, frames))
    for pooling in POOLINGS:
        torch.testing.assert_close(pooled_in_pieces[pooling], pooled[pooling], rtol=0, atol=5e-6)
    for bands in ("mean", "concat"):
        at_once, one_by_one = in_parts(lambda bands=bands: encoder.frames(log_mels, frames, bands=bands))
        torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=2e-6)


def test_windows_equal_those_computed_alone(encoder, log_mels, in_parts):
    """A clip of a whole number of windows has no overlap: each is what a clip of its own gives."""
    frames = 12 * encoder.encoder.config.grid[1] * 16
    clip = log_mels[:1, :, :frames]
    _, (tokens, _) = in_parts(lambda: encoder.tokens(clip, torch.tensor([frames])))
    alone = clip.unflatten(-1, (12, -1)).squeeze(0).movedim(1, 0)
    apart, _ = encoder.tokens(alone, torch.full((12,), frames // 12))
    torch.testing.assert_close(tokens[0], torch.cat(list(apart), dim=1), rtol=0, atol=2e-6)


def test_barred_keys_are_those_of_the_whole(encoder, log_mels, in_parts):
    frames = torch.tensor(FRAMES)

    def seen(count: int, patches: int) -> torch.Tensor:
        return torch.rand(count, patches, generator=torch.Generator().manual_seed(1)) > 0.3

    (whole, _), (parts, _) = in_parts(lambda: encoder.tokens(log_mels, frames, key_mask=seen))
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
    assert not torch.allclose(whole, encoder.tokens(log_mels, frames)[0])


def test_gradients_of_parts_are_those_of_the_whole(log_mels, in_parts):
    encoder = make_encoder().requires_grad_(True)
    weight = encoder.encoder.patch_embed.weight

    def gradient() -> torch.Tensor:
        pooled = encoder.pooled(log_mels[:2], torch.tensor(FRAMES[:2]), ("mean+std",))
        return torch.autograd.grad(pooled["mean+std"].square().sum(), weight)[0]

    whole, parts = in_parts(gradient)
    assert whole.abs().max() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rate", "new_rate"), [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 16_000)])
def test_blocks_of_a_recording_are_resampled_as_all_of_it(monkeypatch, rate, new_rate):
    waveform = np.random.default_rng(0).uniform(-1, 1, 300_001).astype(np.float32)
    monkeypatch.setattr(collector, "AT_ONCE", 50_000)
    found = Collector(rate, new_rate)
    for first in range(0, len(waveform), 7_919):
        found.add(waveform[first : first + 7_919])
    assert np.array_equal(found.waveform(), resample(waveform, rate, new_rate))
    assert found.samples == len(waveform)


def test_bad_samples_of_every_block_are_counted(monkeypatch):
    monkeypatch.setattr(collector, "AT_ONCE", 100)
    found = Collector(44_100, 16_000)
    for i in range(5):
        block = np.zeros(90, np.float32)
        block[i] = (np.nan, np.inf, 1e30, 0, 1)[i]
        found.add(block)
    with pytest.raises(AudioError, match="3 of 450 samples are NaN, infinite"):
        found.waveform()


PEAK = """
import sys
from pathlib import Path
import numpy as np, torch, ajepa

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
encoder = ajepa.load_encoder("nano")
sound = np.random.default_rng(0).standard_normal(int(sys.argv[1]) * 16_000, np.float32)
encoder.clip_embeddings(sound[:160_000], 16_000)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading may have taken more
before = peak()
encoder.clip_embeddings(sound, 16_000, pooling="mean+std")
print(peak() - before)
"""


@pytest.mark.process
def test_memory_of_long_sound(tmp_path):
    """Half an hour takes 270 to 310 MB beside the waveform; all its patches at once took 550 to 650 MB."""
    out = subprocess.run([sys.executable, "-c", PEAK, "1800"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert 0 < int(out.stdout) < 420_000  # kB
