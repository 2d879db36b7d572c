"""load_encoder: waveform in, embedding out, the same features as in training."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from training.test_checkpoint import save_run
from training.test_step import MODEL

import ajepa
from ajepa.audio.logmel import LogMel
from ajepa.config import Config, FrontEndConfig, TrainConfig
from ajepa.encoder import export_encoder, random_encoder
from ajepa.errors import UserError
from ajepa.evaluation.features import POOLINGS
from ajepa.model.vit import patchify
from ajepa.shards.statistics import Statistics

STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)


@pytest.fixture
def encoder():
    return random_encoder(Config(model=MODEL, train=TrainConfig()), FrontEndConfig(), STATISTICS)


def noise(seconds: float, rate: int = 16_000, batch: int | None = None) -> np.ndarray:
    shape = (round(seconds * rate),) if batch is None else (batch, round(seconds * rate))
    return 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_three_lines_from_a_run_to_a_vector(tmp_path, small_dataset):
    save_run(tmp_path / "run", small_dataset, 1)
    soundfile.write(tmp_path / "dog.wav", noise(2.0), 16_000)

    encoder = ajepa.load_encoder(tmp_path / "run")
    waveform, sample_rate = soundfile.read(tmp_path / "dog.wav")
    vector = encoder.clip_embeddings(waveform, sample_rate)

    assert vector.shape == (1, encoder.width) and torch.isfinite(vector).all()


def test_one_window_equals_the_training_forward(encoder):
    waveform = noise(1.27)  # exactly 128 frames
    log_mel = LogMel(FrontEndConfig())(torch.from_numpy(waveform))
    tokens = encoder.encoder(patchify(encoder.normalise(log_mel[None])))
    torch.testing.assert_close(encoder.clip_embeddings(waveform, 16_000), tokens.mean(dim=1), atol=1e-5, rtol=1e-5)


def test_several_windows_are_averaged(encoder):
    waveform = noise(2.55)  # two windows of 128 frames
    log_mel = encoder.normalise(LogMel(FrontEndConfig())(torch.from_numpy(waveform)))
    windows = [encoder.encoder(patchify(log_mel[None, :, i : i + 128])).mean(dim=1) for i in (0, 128)]
    expected = torch.stack(windows).mean(dim=0)
    torch.testing.assert_close(encoder.clip_embeddings(waveform, 16_000), expected, atol=1e-5, rtol=1e-5)


def test_bands_pool_each_row_of_patches_over_the_time_of_all_windows(encoder):
    log_mel = torch.randn(1, 128, 256)
    pooled = encoder.pooled(log_mel, torch.tensor([256]))["bands mean+std"].reshape(8, 2, encoder.width)
    normalised = encoder.normalise(log_mel)
    tokens = torch.cat([encoder.encoder(patchify(part)) for part in normalised.split(128, dim=-1)])
    frames = tokens.reshape(2, 8, 8, -1).transpose(0, 1).reshape(8, 16, -1)  # [rows, columns of both windows, D]
    torch.testing.assert_close(pooled[:, 0], frames.mean(dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled[:, 1], frames.std(dim=1, correction=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_count(encoder, pooling):
    log_mel = torch.randn(1, 128, 128)
    short = encoder.pooled(log_mel[..., :64], torch.tensor([64]))[pooling]
    padded = encoder.pooled(torch.cat([log_mel[..., :64], torch.full((1, 128, 400), 9.0)], -1), torch.tensor([64]))
    torch.testing.assert_close(short, padded[pooling], atol=1e-5, rtol=1e-4)


def test_a_batch_equals_its_clips(encoder):
    waveforms = noise(1.5, batch=3)
    together = encoder.clip_embeddings(waveforms, 16_000)
    apart = torch.cat([encoder.clip_embeddings(w, 16_000) for w in waveforms])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_another_sample_rate_gives_nearly_the_same_vector(encoder):
    t = np.arange(48_000) / 48_000
    sound = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1234 * t)).astype(np.float32)
    a = encoder.clip_embeddings(sound, 48_000)
    b = encoder.clip_embeddings(np.ascontiguousarray(sound[::3]), 16_000)
    assert torch.nn.functional.cosine_similarity(a, b).item() > 0.98


@pytest.mark.parametrize(
    ("waveform", "match"),
    [
        (np.zeros(0, np.float32), "shape"),
        (np.zeros((1, 2, 3), np.float32), "shape"),
        (np.array([0.0, np.nan] * 500, np.float32), "NaN or infinite"),
        (np.zeros(100, np.float32), "shorter than one window"),
    ],
)
def test_bad_waveforms_are_named(encoder, waveform, match):
    with pytest.raises(ValueError, match=match):
        encoder.clip_embeddings(waveform, 16_000)


def test_both_branches_load_and_differ(tmp_path, small_dataset):
    save_run(tmp_path, small_dataset, 2)
    target, context = (ajepa.load_encoder(str(tmp_path), branch) for branch in ("target", "context"))
    assert not torch.equal(target.encoder.patch_embed.weight, context.encoder.patch_embed.weight)
    assert not any(p.requires_grad for p in target.parameters())


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ajepa.load_encoder(str(tmp_path / "nothing"))


def test_random_encoders_of_other_seeds_differ():
    config = Config(model=MODEL, train=TrainConfig())
    other = dataclasses.replace(config, train=TrainConfig(seed=1))
    a, b = (random_encoder(c, FrontEndConfig(), STATISTICS) for c in (config, other))
    assert not torch.equal(a.encoder.patch_embed.weight, b.encoder.patch_embed.weight)


@pytest.fixture
def exported(tmp_path, small_dataset):
    """(run, export) of a run of one step."""
    save_run(tmp_path / "run", small_dataset, 1)
    export_encoder(str(tmp_path / "run"), str(tmp_path / "export"))
    return tmp_path / "run", tmp_path / "export"


def test_an_export_gives_the_embeddings_of_its_run(exported):
    vectors = [ajepa.load_encoder(path).clip_embeddings(noise(2.0), 16_000) for path in exported]
    assert torch.equal(*vectors)


def test_an_export_holds_one_encoder_and_no_optimizer(exported):
    assert sorted(p.name for p in exported[1].iterdir()) == ["encoder.json", "encoder.safetensors"]
    sizes = [sum(p.stat().st_size for p in path.rglob("*.safetensors")) for path in exported]
    assert sizes[1] < sizes[0] / 3


def test_an_export_of_the_other_branch_is_refused(exported):
    with pytest.raises(UserError, match="holds the target encoder, not the context"):
        ajepa.load_encoder(exported[1], "context")


def test_a_damaged_export_is_refused(exported):
    weights = exported[1] / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="does not match its digest"):
        ajepa.load_encoder(exported[1])


def test_an_export_never_writes_over_anything(exported):
    with pytest.raises(UserError, match="exists: choose another"):
        export_encoder(str(exported[0]), str(exported[1]))
