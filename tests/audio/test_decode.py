"""Decoding: formats, rates, channels, cuts and odd paths."""

from fractions import Fraction

import numpy as np
import pytest
import soundfile
from helpers.encoded import encode_av

from ajepa.audio.collector import resample
from ajepa.audio.decode import decode

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)


def sine(hertz, rate, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def chirp(rate, seconds=3.0):
    t = np.arange(round(rate * seconds)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)


def pitch(waveform, rate=RATE):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 16 * len(waveform)))
    return spectrum.argmax() * rate / (16 * len(waveform))


@pytest.mark.parametrize(
    ("subtype", "step"), [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 1e-7), ("DOUBLE", 1e-7)]
)
def test_wav_keeps_every_sample(tmp_path, write_wav, subtype, step):
    waveform, *_ = decode(write_wav(tmp_path / "a.wav", NOISE, subtype=subtype), RATE)
    np.testing.assert_allclose(waveform, NOISE, rtol=0, atol=step)


@pytest.mark.parametrize("name", ["a.flac", "a.aiff", "a.caf", "a.au", "a.w64"])
def test_lossless_formats_keep_every_sample(tmp_path, write_wav, name):
    waveform, *_ = decode(write_wav(tmp_path / name, NOISE, subtype="PCM_16"), RATE)
    np.testing.assert_allclose(waveform, NOISE, rtol=0, atol=2**-15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ogg", {"subtype": "VORBIS"}),
        ("a.oga", {"format": "OGG", "subtype": "VORBIS"}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", {}),
        ("A.MP3", {}),
    ],
)
def test_lossy_formats_sound_the_same(tmp_path, write_wav, name, options):
    wanted = chirp(RATE)
    try:
        path = write_wav(tmp_path / name, wanted, **options)
    except (soundfile.LibsndfileError, ValueError) as error:
        pytest.skip(f"this libsndfile does not write {name}: {error}")
    waveform, seconds, _ = decode(path, RATE)
    assert seconds == pytest.approx(3.0, abs=0.1)
    assert np.corrcoef(waveform[: len(wanted)], wanted[: len(waveform)])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("name", "codec", "rate"), [("a.m4a", "aac", RATE), ("a.mp4", "aac", 44_100), ("a.webm", "libopus", 48_000)]
)
def test_containers_of_pyav_sound_the_same(tmp_path, name, codec, rate):
    waveform, seconds, _ = decode(encode_av(tmp_path / name, codec, chirp(rate)[None], rate), RATE)
    wanted = chirp(RATE)
    assert seconds == pytest.approx(3.0, abs=0.1)
    assert np.corrcoef(waveform[: len(wanted)], wanted[: len(waveform)])[0, 1] > 0.99


def test_the_waveform_is_one_row_of_float32(tmp_path, write_wav):
    waveform, *_ = decode(write_wav(tmp_path / "a.wav", NOISE), RATE)
    assert (waveform.shape, waveform.dtype) == ((RATE,), np.float32)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_a_resampled_sine_keeps_its_frequency(tmp_path, write_wav, rate):
    waveform, seconds, _ = decode(write_wav(tmp_path / "a.wav", sine(440, rate), rate), RATE)
    assert seconds == 1.0
    assert abs(len(waveform) - RATE) <= 1
    assert pitch(waveform) == pytest.approx(440, abs=1)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=0.02)


def test_resampling_does_not_alias():
    assert np.abs(resample(sine(10_000, 48_000).astype(np.float32), 48_000, RATE)[500:-500]).max() < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_channels_are_mixed_to_their_mean(tmp_path, write_wav, channels):
    samples = np.random.default_rng(channels).uniform(-0.5, 0.5, (5_000, channels))
    waveform, *_ = decode(write_wav(tmp_path / "a.wav", samples, subtype="FLOAT"), RATE)
    np.testing.assert_allclose(waveform, samples.mean(axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channels", "layout"), [(2, "stereo"), (16, "hexadecagonal")])
def test_pyav_channels_are_mixed_to_their_mean(tmp_path, channels, layout):
    """PyAV exposes 8 planes of a planar frame; more of them once took the process down."""
    av = pytest.importorskip("av")
    samples = np.random.default_rng(channels).uniform(-0.5, 0.5, (channels, 5_000)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    with av.open(str(tmp_path / "a.mka"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout=layout)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    waveform, *_ = decode(str(tmp_path / "a.mka"), RATE)
    np.testing.assert_allclose(waveform, samples.mean(axis=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize(("start_s", "duration_s"), [(0.0, 0.25), (0.5, 0.25), (0.3, None), (0.9, 5.0)])
def test_a_cut_equals_that_part_of_the_whole(tmp_path, write_wav, name, start_s, duration_s):
    path = write_wav(tmp_path / name, NOISE)
    whole, *_ = decode(path, RATE)
    stop = None if duration_s is None else round((start_s + duration_s) * RATE)
    wanted = whole[round(start_s * RATE) : stop]
    waveform, seconds, _ = decode(path, RATE, start_s, duration_s)
    assert seconds == len(wanted) / RATE
    np.testing.assert_allclose(waveform, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start_s", [0.5, 1.0, 1.234, 2.0])
def test_a_cut_of_m4a_equals_that_part_of_the_whole(tmp_path, start_s):
    """The decoder needs frames before the cut to start right."""
    path = encode_av(tmp_path / "a.m4a", "aac", chirp(RATE)[None], RATE)
    whole, *_ = decode(path, RATE)
    first = round(start_s * RATE)
    np.testing.assert_allclose(decode(path, RATE, start_s, 0.5)[0], whole[first : first + 8_000], rtol=0, atol=1e-5)


def test_a_cut_is_counted_at_the_rate_of_the_file(tmp_path, write_wav):
    path = write_wav(tmp_path / "a.wav", np.r_[sine(300, 44_100), sine(900, 44_100)], 44_100)
    assert pitch(decode(path, RATE, 1.0, 0.5)[0]) == pytest.approx(900, abs=2)


@pytest.mark.parametrize("name", ["a b.wav", "größe 音.wav", "two\nlines.wav", "100%25.wav", "a#b?.wav"])
def test_odd_names_are_read(tmp_path, write_wav, name):
    assert len(decode(write_wav(tmp_path / name, NOISE), RATE)[0]) == RATE


def test_a_symbolic_link_is_followed(tmp_path, write_wav):
    write_wav(tmp_path / "a.wav", NOISE)
    (tmp_path / "link.wav").symlink_to("a.wav")
    assert len(decode(str(tmp_path / "link.wav"), RATE)[0]) == RATE


@pytest.mark.parametrize("name", ["a b.wav", "a b.mp3", "a b.flac"])
def test_a_uri_gives_the_same_samples_as_the_path(tmp_path, write_wav, name):
    path = write_wav(tmp_path / name, NOISE)
    np.testing.assert_array_equal(decode((tmp_path / name).as_uri(), RATE)[0], decode(path, RATE)[0])


def test_decoding_twice_gives_the_same_bits(tmp_path, write_wav):
    path = write_wav(tmp_path / "a.ogg", chirp(44_100), 44_100)
    np.testing.assert_array_equal(decode(path, RATE)[0], decode(path, RATE)[0])


def test_real_clips_are_read_to_their_end(esc10):
    for path in sorted((esc10 / "audio").iterdir())[::20]:
        assert decode(str(path), RATE)[1] == soundfile.info(path).duration, path.name


def test_spoken_digits_are_resampled_from_8_khz(fsdd):
    path = sorted(fsdd.iterdir())[0]
    waveform, seconds, _ = decode(str(path), RATE)
    assert seconds == soundfile.info(path).duration
    assert len(waveform) == pytest.approx(RATE * seconds, abs=1)
