"""AudioEncoder: the features of training from a waveform, of any length, in any company."""

import copy
import warnings

import numpy as np
import pytest
import torch
from helpers.properties import examples
from helpers.training_state import MODEL
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ajepa.audio import logmel, waveforms
from ajepa.audio.logmel import LogMel
from ajepa.audio.statistics import Statistics
from ajepa.choices import POOLINGS
from ajepa.config import FrontEndConfig
from ajepa.evaluation.features import encoder_features
from ajepa.inference import encoder as encoder_module
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import random_encoder
from ajepa.model.pooling import WeightedLayers, cover
from ajepa.model.vit import patchify

STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)


def build():
    return random_encoder(MODEL, 0, FrontEndConfig(), STATISTICS)


@pytest.fixture(scope="module")
def encoder():
    return build()


def noise(seconds: float, rate: int = 16_000, batch: int | None = None) -> np.ndarray:
    shape = (round(seconds * rate),) if batch is None else (batch, round(seconds * rate))
    return 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def log_mel_of(waveform: np.ndarray) -> torch.Tensor:
    return LogMel(FrontEndConfig())(torch.from_numpy(waveform))[None].half()


def window_tokens(encoder, log_mel: torch.Tensor, first: int) -> torch.Tensor:
    """[R, window, D] of one window that begins at a column, by the ViT alone."""
    rows, columns = encoder.encoder.config.grid
    part = encoder.normalise(log_mel)[..., 16 * first : 16 * (first + columns)]
    return encoder.encoder(patchify(part)).reshape(rows, columns, -1)


def test_one_window_equals_the_training_forward(encoder):
    waveform = noise(1.27)  # exactly 128 frames
    tokens = window_tokens(encoder, log_mel_of(waveform), 0)
    close(encoder(waveform, 16_000), tokens.mean(dim=(0, 1))[None])
    close(encoder.patch_embeddings(waveform, 16_000).embeddings, tokens.flatten(0, 1)[None])
    close(encoder.frame_embeddings(waveform, 16_000).embeddings, tokens.mean(dim=0)[None])


def test_features_of_a_shard_are_those_of_its_waveform(encoder, esc10, build_dataset, tmp_path):
    from ajepa.audio.decode import decode

    uris = [str(path) for path in sorted((esc10 / "audio").iterdir())[:3]]
    clips = [{"clip_id": f"{i}", "uri": uri} for i, uri in enumerate(uris)]
    dataset = build_dataset(tmp_path, clips, shard_size=3, front_end=FrontEndConfig(clip_frames=512), label_names=[])
    features = encoder_features(encoder, dataset)
    batch = [decode(uri, 16_000).waveform for uri in uris]
    for pooling in POOLINGS:
        vectors = encoder.clip_embeddings(batch, 16_000, pooling=pooling).numpy()
        np.testing.assert_allclose(vectors, features[pooling], atol=1e-4, rtol=1e-4)


def test_windows_cover_evenly_and_overlaps_are_averaged(encoder):
    log_mel = log_mel_of(noise(2.23))  # 14 columns: windows of 8 at 0 and 6
    tokens, valid = encoder.tokens(log_mel, torch.tensor([log_mel.shape[-1]]))
    first, second = (window_tokens(encoder, log_mel, start) for start in (0, 6))
    assert valid.all() and tokens.shape == (1, 8, 14, encoder.width)
    close(tokens[0, :, :6], first[:, :6])
    close(tokens[0, :, 6:8], (first[:, 6:] + second[:, :2]) / 2)
    close(tokens[0, :, 8:], second[:, 2:])


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 20))
@examples(50)
def test_every_column_is_covered_by_as_few_windows_as_that_takes(columns, window):
    clip, start = cover(torch.tensor(columns), window)
    for i, own in enumerate(columns):
        starts = start[clip == i]
        assert len(starts) == max(1, -(-own // window))
        assert starts[0] == 0 and starts[-1] == max(0, own - window)
        assert (starts.diff() <= window).all() and (starts.diff() > 0).all()


def test_bands_pool_each_row_of_patches_over_time(encoder):
    log_mel = torch.randn(1, 128, 256)
    tokens, _ = encoder.tokens(log_mel, torch.tensor([256]))
    pooled = encoder.pooled(log_mel, torch.tensor([256]))["bands mean+std"].reshape(8, 2, encoder.width)
    close(pooled[:, 0], tokens[0].mean(dim=1))
    close(pooled[:, 1], tokens[0].std(dim=1, correction=0))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_does_not_count(encoder, pooling):
    log_mel = torch.randn(1, 128, 128)
    short = encoder.pooled(log_mel[..., :64], torch.tensor([64]))[pooling]
    padded = encoder.pooled(torch.cat([log_mel[..., :64], torch.full((1, 128, 400), 9.0)], -1), torch.tensor([64]))
    close(short, padded[pooling])


def test_a_click_is_embedded_with_silence_behind_it(encoder):
    click = noise(0.01)
    close(encoder(click, 16_000), encoder(F.pad(torch.as_tensor(click), (0, 400 - len(click))), 16_000))


def test_short_input_is_seen_alone_whatever_it_is_batched_with(encoder):
    short, long = noise(0.4), noise(2.0)
    together = encoder([short, long], 16_000)
    close(together, torch.cat([encoder(short, 16_000), encoder(long, 16_000)]))
    rows, columns = encoder.encoder.config.grid
    log_mel = F.pad(encoder.normalise(log_mel_of(short)), (0, 48 - 41))[..., :48]  # 41 frames: 3 columns
    positions = encoder.encoder.positions.reshape(rows, columns, -1)[:, :3].flatten(0, 1)
    x = encoder.encoder.patch_embed(patchify(log_mel)) + positions
    for block in encoder.encoder.blocks:
        x = block(x)
    close(encoder.patch_embeddings(short, 16_000).embeddings, encoder.encoder.norm(x))


def test_a_padded_batch_with_lengths_equals_its_clips(encoder):
    waveforms, lengths = noise(1.5, batch=3), [24_000, 8_000, 17_001]
    together = encoder(waveforms, 16_000, lengths)
    apart = [encoder(w[:n], 16_000) for w, n in zip(waveforms, lengths, strict=True)]
    close(together, torch.cat(apart))


def test_frames_carry_their_times_and_end_with_their_clip(encoder):
    frames = encoder.frame_embeddings([noise(1.0), noise(3.0)], 16_000)
    assert frames.embeddings.shape == (2, 19, encoder.width)
    assert frames.timestamps[:3].tolist() == [75.0, 235.0, 395.0]
    assert frames.valid.sum(dim=1).tolist() == [6, 19]


@pytest.mark.parametrize("hop_ms", [80, 40, 20, 10])
def test_a_finer_hop_interleaves_shifted_input(encoder, hop_ms):
    waveform = noise(2.0)
    coarse, fine = encoder.frame_embeddings(waveform, 16_000), encoder.frame_embeddings(waveform, 16_000, hop_ms=hop_ms)
    every = 160 // hop_ms
    assert fine.timestamps.diff().unique().tolist() == [hop_ms]
    close(fine.embeddings[:, ::every][:, : coarse.embeddings.shape[1]], coarse.embeddings)
    log_mel = log_mel_of(waveform)
    shifted, _ = encoder.tokens(log_mel[..., hop_ms // 10 :], torch.tensor([log_mel.shape[-1] - hop_ms // 10]))
    close(fine.embeddings[:, 1::every], shifted.mean(dim=1)[:, : fine.embeddings[:, 1::every].shape[1]])


def test_bands_of_frames_can_be_kept_apart(encoder):
    waveform = noise(2.0)
    apart = encoder.frame_embeddings(waveform, 16_000, bands="concat").embeddings
    assert apart.shape[-1] == 8 * encoder.width
    close(apart.unflatten(-1, (8, -1)).mean(dim=2), encoder.frame_embeddings(waveform, 16_000).embeddings)


def test_layers_are_concatenated_or_stacked(encoder):
    waveform, layers = noise(2.0), [1, encoder.depth]
    concat = encoder.clip_embeddings(waveform, 16_000, layers=layers)
    stacked = encoder.clip_embeddings(waveform, 16_000, layers=layers, combine="stack")
    assert stacked.shape == (1, 2, encoder.width)
    close(concat, stacked.flatten(1))
    close(stacked[:, 1], encoder(waveform, 16_000))
    mixed = WeightedLayers(2)(stacked)
    close(mixed, stacked.mean(dim=1))


@pytest.mark.parametrize("layers", [[0], [99], []])
def test_layers_that_are_not_there_are_refused(encoder, layers):
    with pytest.raises(ValueError, match="has the layers 1 to"):
        encoder.clip_embeddings(noise(1.0), 16_000, layers=layers)


def test_hours_are_computed_in_parts_of_bounded_size(encoder, monkeypatch):
    waveform = noise(20.0)
    whole = encoder.patch_embeddings(waveform, 16_000).embeddings
    monkeypatch.setattr(logmel, "PIECE", 300)
    monkeypatch.setattr(encoder_module, "PATCHES_AT_ONCE", {"cpu": 64})
    assert torch.equal(encoder.log_mels(waveform, 16_000)[0], log_mel_of(waveform))
    close(encoder.patch_embeddings(waveform, 16_000).embeddings, whole)


def test_another_sample_rate_gives_nearly_the_same_vector(encoder):
    t = np.arange(48_000) / 48_000
    sound = (0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1234 * t)).astype(np.float32)
    a = encoder(sound, 48_000)
    b = encoder(np.ascontiguousarray(sound[::3]), 16_000)
    assert F.cosine_similarity(a, b).item() > 0.98


def test_channels_are_mixed_with_one_warning(encoder, monkeypatch):
    monkeypatch.setattr(waveforms, "_mixed", False)
    left, right = noise(1.0), noise(1.0)[::-1].copy()
    mixed = encoder((left + right) / 2, 16_000)
    with pytest.warns(UserWarning, match="2 channels are averaged"):
        close(encoder(np.stack([left, right], axis=1), 16_000), mixed)  # as soundfile reads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(encoder(torch.from_numpy(np.stack([left, right])[None]), 16_000), mixed)  # as torchaudio loads, a batch


def test_gradients_flow_where_parameters_ask_for_them():
    trained = build().requires_grad_(True)
    log_mel = log_mel_of(noise(1.0))
    trained.pooled(log_mel, torch.tensor([log_mel.shape[-1]]))["bands mean+std"].sum().backward()
    gradients = [p.grad for p in trained.encoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_barred_keys_change_what_the_others_see(encoder):
    log_mel = torch.randn(2, 128, 128)
    frames = torch.tensor([128, 100])
    plain, _ = encoder.tokens(log_mel, frames)
    all_seen, _ = encoder.tokens(log_mel, frames, key_mask=lambda w, n: torch.ones(w, n, dtype=torch.bool))
    barred, _ = encoder.tokens(log_mel, frames, key_mask=lambda w, n: torch.arange(n).expand(w, n) % 10 > 0)
    close(plain, all_seen)
    assert not torch.allclose(plain, barred, atol=1e-3)


@pytest.mark.parametrize(
    ("waveform", "error", "match"),
    [
        (np.zeros(0, np.float32), ValueError, "the waveform is empty"),
        (np.zeros((0, 16_000), np.float32), ValueError, "the batch is empty"),
        ([], ValueError, "the batch is empty"),
        (np.zeros((1, 2, 3, 4), np.float32), ValueError, "has the shape"),
        (np.array([0.0, np.nan] * 500, np.float32), ValueError, "NaN or infinite"),
        (np.zeros(0, np.float32), ValueError, "empty"),
        (np.zeros(16_000, np.int16), TypeError, "divide 16-bit integers by 32768"),
        ("dog.wav", TypeError, "numpy array or a torch tensor, not str"),
        ([np.zeros((2, 16_000), np.float32)], ValueError, "a list holds waveforms of the shape"),
    ],
)
def test_bad_waveforms_are_named(encoder, waveform, error, match):
    with pytest.raises(error, match=match):
        encoder(waveform, 16_000)


@pytest.mark.parametrize(
    ("rate", "error"),
    [(16_000.0, TypeError), ("16000", TypeError), (True, TypeError), (0, ValueError), (44, ValueError)],
)
def test_bad_sample_rates_are_named(encoder, rate, error):
    with pytest.raises(error, match=r"the sample rate is|a sample rate of \d+: give it in Hz"):
        encoder(noise(1.0), rate)


@pytest.mark.parametrize("precision", ["float32", "fp16", "int8", "bfloat16", ""])
def test_a_precision_that_is_not_known_is_refused(encoder, precision):
    with pytest.raises(ValueError, match=f"precision '{precision}': choose from fp32, bf16"):
        AudioEncoder(encoder.encoder, encoder.front_end, encoder.normalise.statistics, precision=precision)


@pytest.mark.parametrize("cast", [lambda e: e.half(), lambda e: e.bfloat16(), lambda e: e.to(torch.float16)])
def test_weights_that_were_cast_name_the_option(encoder, cast):
    with pytest.raises(TypeError, match=r'give load_encoder\(..., precision="bf16"\) instead'):
        cast(copy.deepcopy(encoder))(noise(1.0), 16_000)


def test_a_state_dict_carries_the_statistics(encoder):
    """Weights mean nothing without what their input is normalised with."""
    other_statistics = Statistics(np.full(128, 1.5), np.full(128, 0.5), 100)
    other = AudioEncoder(copy.deepcopy(encoder.encoder), encoder.front_end, other_statistics)
    sound, wanted = noise(1.0), encoder(noise(1.0), 16_000)
    assert not torch.allclose(other(sound, 16_000), wanted, atol=1e-3)
    other.load_state_dict(encoder.state_dict())
    close(other(sound, 16_000), wanted)
    assert np.allclose(other.normalise.statistics.mean, encoder.normalise.statistics.mean, atol=1e-6)  # as exported
    old = {name: value for name, value in encoder.state_dict().items() if "normalise" not in name}
    with pytest.raises(RuntimeError, match=r"normalise\.mean"):
        other.load_state_dict(old)


def test_bad_lengths_are_named(encoder):
    with pytest.raises(ValueError, match="give 1 to the padded length for each of 2 clips"):
        encoder(noise(1.0, batch=2), 16_000, lengths=[16_001, 5])
