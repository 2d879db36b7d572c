"""The front end against a float64 reference and against torchaudio."""

import numpy as np
import pytest
import torch
import torchaudio

from ajepa.audio.decode import decode
from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel, filterbank
from ajepa.config import FrontEndConfig

CONFIG = FrontEndConfig()
# Log units. A float32 FFT leaves 1e-9 of a clip's power in its silent bins, which near log(1e-6) is an error of
# 1.2e-3 (torchaudio's own, to the digit); a stored float16 steps by 7.8e-3 there.
TOLERANCE = 2e-3


def slaney_hz(mel):
    """Linear to 1 kHz (15 mel), then 27 mel for a factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))


def reference_filters():
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = slaney_hz(np.linspace(0, top, 130))
    low, peak, high = edges[:-2], edges[1:-1], edges[2:]
    hz = np.arange(257)[:, None] * 16_000 / 512
    return np.maximum(0, np.minimum((hz - low) / (peak - low), (high - hz) / (high - peak)))


def reference_log_mel(waveform):
    """[samples] -> [128, frames], all in float64."""
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(waveform.astype(np.float64), 256, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::160]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log(power @ reference_filters() + 1e-6).T


def sines(*hertz, seconds=1.0):
    t = np.arange(round(16_000 * seconds)) / 16_000
    return sum(np.sin(2 * np.pi * f * t) for f in hertz).astype(np.float32) / len(hertz)


def noise(samples, scale=0.1):
    return (scale * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


SYNTHETIC = {
    "noise": noise(16_000),
    "quiet noise": noise(12_345, 1e-4),
    "full-scale noise": noise(7_777, 1.0),
    "low sine": sines(50),
    "sines": sines(440, 1000, 3999, 7900),
    "silence": np.zeros(5_000, np.float32),
    "click": np.eye(1, 8_000, 4_000, dtype=np.float32)[0],
    "one window": noise(400),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_equals_the_float64_reference(name):
    ours = LogMel(CONFIG)(torch.from_numpy(SYNTHETIC[name])).numpy()
    np.testing.assert_allclose(ours, reference_log_mel(SYNTHETIC[name]), rtol=0, atol=TOLERANCE)


def test_equals_the_float64_reference_on_real_clips(esc10):
    for path in sorted((esc10 / "audio").iterdir())[::40]:
        waveform, *_ = decode(str(path), 16_000)
        ours = LogMel(CONFIG)(torch.from_numpy(waveform)).numpy()
        np.testing.assert_allclose(ours, reference_log_mel(waveform), rtol=0, atol=TOLERANCE, err_msg=path.name)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_equals_torchaudio(name):
    theirs = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=128,
        f_min=0, f_max=8_000, norm=None, mel_scale="slaney", power=2,
    )  # fmt: skip
    waveform = torch.from_numpy(SYNTHETIC[name])
    torch.testing.assert_close(LogMel(CONFIG)(waveform), torch.log(theirs(waveform) + 1e-6), rtol=0, atol=1e-3)


def test_audible_bins_equal_the_reference_to_a_thousandth(esc10):
    for path in sorted((esc10 / "audio").iterdir())[20::40]:
        waveform, *_ = decode(str(path), 16_000)
        wanted = reference_log_mel(waveform)
        error = np.abs(LogMel(CONFIG)(torch.from_numpy(waveform)).numpy() - wanted)
        assert error[wanted > -12].max() <= 1e-3, path.name


def test_filterbank_equals_its_definition():
    np.testing.assert_allclose(filterbank(CONFIG).numpy(), reference_filters(), atol=1e-4)


def test_every_filter_covers_an_fft_bin():
    assert (filterbank(CONFIG).sum(dim=0) > 0).all()


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize(
    "config",
    [
        FrontEndConfig(),
        FrontEndConfig(n_mels=64),
        FrontEndConfig(f_min=50.0, f_max=7_000.0),
        FrontEndConfig(n_mels=80, n_fft=1024, win_length=1024, sample_rate=44_100, f_max=22_050.0),
        FrontEndConfig(n_mels=16, f_max=900.0),
    ],
)
def test_the_filterbank_is_torchaudios_to_the_last_bit(config):
    theirs = torchaudio.functional.melscale_fbanks(
        config.n_fft // 2 + 1, config.f_min, config.f_max, config.n_mels, config.sample_rate, norm=None,
        mel_scale="slaney",
    )  # fmt: skip
    assert torch.equal(filterbank(config), theirs)


def test_the_htk_scale_would_leave_a_filter_empty():
    """Decision 1 of the design: why the filters are Slaney's."""
    htk = torchaudio.functional.melscale_fbanks(257, 0.0, 8_000.0, 128, 16_000, mel_scale="htk")
    assert (htk.sum(dim=0) == 0).any()


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_empty_filters_are_refused():
    with pytest.raises(ValueError, match="cover no FFT bin"):
        filterbank(FrontEndConfig(n_mels=256, n_fft=512))


@pytest.mark.parametrize("samples", [400, 479, 480, 1_599, 1_600, 16_000])
def test_frames_are_one_and_a_frame_a_hop(samples):
    assert LogMel(CONFIG)(torch.zeros(samples)).shape == (128, 1 + samples // 160)


def test_clip_samples_give_clip_frames():
    assert LogMel(CONFIG)(torch.zeros(CONFIG.clip_samples)).shape == (128, CONFIG.clip_frames)


def test_leading_dimensions_are_kept():
    assert LogMel(CONFIG)(torch.zeros(2, 3, 1_600)).shape == (2, 3, 128, 11)


@pytest.mark.parametrize("samples", [400, 3_333, 16_000])
@pytest.mark.parametrize("clips", [2, 5, 8])
def test_a_batch_equals_its_clips_bit_for_bit(samples, clips):
    front_end, waveforms = LogMel(CONFIG), torch.from_numpy(noise(samples * clips)).reshape(clips, samples)
    assert torch.equal(front_end(waveforms), torch.stack([front_end(w) for w in waveforms]))


def test_silence_is_log_epsilon():
    log_mel = LogMel(CONFIG)(torch.zeros(1_600))
    torch.testing.assert_close(log_mel, torch.full_like(log_mel, np.log(1e-6)))


@pytest.mark.parametrize("samples", [1, 17, 399])
def test_less_than_one_window_has_silence_behind_it(samples):
    waveform = torch.rand(2, samples)
    padded = torch.cat([waveform, torch.zeros(2, 400 - samples)], dim=1)
    assert torch.equal(LogMel(CONFIG)(waveform), LogMel(CONFIG)(padded))


def test_no_samples_are_an_audio_error():
    with pytest.raises(AudioError, match=r"^waveform: no samples"):
        LogMel(CONFIG)(torch.zeros(0))


def test_the_state_dict_is_empty():
    """Checkpoints never carry the front end's constants."""
    assert not LogMel(CONFIG).state_dict()
