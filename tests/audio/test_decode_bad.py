"""Bad files: each one is an AudioError with its stage and reason, never a crash and never unbounded memory."""

import os
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.encoded import NOISE, RATE, encoded
from helpers.properties import nightly

from ajepa.audio.decode import decode
from ajepa.audio.errors import AudioError


def wav_header(data_bytes, rate=RATE, channels=1):
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", min(36 + data_bytes, 2**32 - 1), b"WAVE", b"fmt ", 16, 1, channels, rate,
        (rate * 2 * channels) % 2**32, 2 * channels, 16, b"data", data_bytes,
    )  # fmt: skip


def with_sample(value):
    return np.r_[NOISE, value, NOISE].astype(np.float32)


BAD_BYTES = {
    "zero bytes": ("a.wav", b"", "decode: empty file"),
    "zero bytes m4a": ("a.m4a", b"", "decode: empty file"),
    "one byte": ("a.wav", b"R", "decode: "),
    "text named wav": ("a.wav", b"these are notes, not sound\n" * 20, "decode: "),
    "text named mp3": ("a.mp3", b"these are notes, not sound\n" * 20, "decode: "),
    "text named m4a": ("a.m4a", b"these are notes, not sound\n" * 20, "decode: "),
    "truncated header": ("a.wav", wav_header(1_000)[:30], "decode: "),
    "header alone": ("a.wav", wav_header(0), "decode: no samples"),
    "zero rate": ("a.wav", wav_header(1_000, rate=0) + b"\1" * 1_000, "decode: "),
    "absurd rate": ("a.wav", wav_header(1_000, rate=2**31 - 1) + b"\1" * 1_000, "decode: implausible sample rate"),
    "absurd channels": ("a.wav", wav_header(4_000, channels=1_000) + b"\1" * 4_000, "decode: implausible channel"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes_are_an_audio_error(tmp_path, case):
    name, data, reason = BAD_BYTES[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AudioError) as error:
        decode(str(tmp_path / name), RATE)
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e25])
def test_samples_that_are_no_sound_are_an_audio_error(tmp_path, write_wav, value):
    """1e25 is finite, but its mel power is not."""
    path = write_wav(tmp_path / "a.wav", with_sample(value), subtype="FLOAT")
    with pytest.raises(AudioError, match=r"^waveform: 1 of 16001 samples are NaN, infinite or beyond"):
        decode(path, RATE)


def test_floats_in_the_scale_of_integers_are_sound(tmp_path, write_wav):
    assert np.abs(decode(write_wav(tmp_path / "a.wav", NOISE * 2**31, subtype="FLOAT"), RATE)[0]).max() > 2**29


def test_a_missing_file_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"^read: .*No such file"):
        decode(str(tmp_path / "none.wav"), RATE)


def test_a_missing_uri_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"^read: "):
        decode((tmp_path / "none.wav").as_uri(), RATE)


def test_a_file_one_may_not_read_is_an_audio_error(write_wav):
    with tempfile.TemporaryDirectory() as folder:  # one that anybody may enter, unlike pytest's
        Path(folder).chmod(0o755)
        path = write_wav(Path(folder, "a.wav"), NOISE)
        Path(path).chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.raises(AudioError, match=r"^read: .*Permission denied"):
                decode(path, RATE)
        finally:
            os.seteuid(user)


def test_a_folder_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"^read: "):
        decode(str(tmp_path), RATE)


@pytest.mark.parametrize("uri", ["gopher://host/a.wav", "nul\0byte.wav"])
def test_a_uri_nobody_can_open_is_an_audio_error(uri):
    with pytest.raises(AudioError, match=r"^read: "):
        decode(uri, RATE)


def test_a_dangling_link_is_an_audio_error(tmp_path):
    (tmp_path / "link.wav").symlink_to("gone.wav")
    with pytest.raises(AudioError, match=r"^read: "):
        decode(str(tmp_path / "link.wav"), RATE)


def test_a_start_beyond_the_end_is_an_audio_error(tmp_path, write_wav):
    with pytest.raises(AudioError, match=r"^decode: no samples at 2 s"):
        decode(write_wav(tmp_path / "a.wav", NOISE), RATE, start_s=2.0)


def test_a_header_that_claims_hours_gives_the_samples_there_are(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_header(0x7FFFFFFF) + b"\1\2" * 4_000)
    tracemalloc.start()
    waveform, *_ = decode(str(tmp_path / "a.wav"), RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(waveform) == 4_000
    assert peak < 8 << 20


def test_memory_is_bounded_by_the_duration_wanted(tmp_path):
    path = tmp_path / "hours.wav"
    path.write_bytes(wav_header(1 << 30))
    with path.open("ab") as file:
        file.truncate(1 << 30)  # sparse: nine hours of silence
    tracemalloc.start()
    waveform, *_ = decode(str(path), RATE, start_s=3_600, duration_s=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(waveform) == RATE
    assert peak < 8 << 20


def survives(path):
    """A clip or an AudioError; anything else is raised. Says which."""
    try:
        waveform, *_ = decode(str(path), RATE)
    except AudioError as error:
        assert str(error).partition(":")[0] in {"read", "decode", "waveform"}
        return False
    assert (waveform.dtype, waveform.ndim) == (np.float32, 1)
    assert np.isfinite(waveform).all()
    return True


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_a_file_cut_short_is_a_shorter_clip_or_an_audio_error(tmp_path, write_wav, name, kept):
    data = encoded(tmp_path / name, write_wav)
    (tmp_path / name).write_bytes(data[: int(kept * len(data))])
    if survives(tmp_path / name):
        assert len(decode(str(tmp_path / name), RATE)[0]) <= 1.1 * len(NOISE)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a"])
def test_damaged_bytes_give_a_clip_or_an_audio_error(tmp_path, write_wav, name):
    data = encoded(tmp_path / name, write_wav)
    generator = np.random.default_rng(1)
    for trial in range(nightly(200)):
        damaged = bytearray(data)
        reach = min(len(data), 100) if trial % 2 else len(data)  # every second one in the header
        for place in generator.integers(reach, size=1 + trial % 8):
            damaged[place] = generator.integers(256)
        (tmp_path / name).write_bytes(damaged)
        survives(tmp_path / name)
