"""Ogg files with pages lost or other bytes between them, and recordings of one format behind another: read to the real
end, or refused with the reason."""

import io
import struct

import numpy as np
import pytest
import soundfile

from ajepa.audio.decode import decode, duration
from ajepa.audio.errors import AudioError
from ajepa.audio.mpeg import begins

RATE = 16_000
SECONDS = 20


def encoded(seconds, kind, subtype=None):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    soundfile.write(file, 0.1 * rng.standard_normal(seconds * RATE), RATE, format=kind, subtype=subtype)
    return file.getvalue()


def page_starts(data):
    starts, at = [], 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        starts.append(at)
        at += 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
    return starts


@pytest.fixture(params=["VORBIS", "OPUS"], scope="module")
def ogg(request):
    data = encoded(SECONDS, "OGG", request.param)
    starts = page_starts(data)
    assert len(starts) > 12
    return data, starts


def both(path):
    return duration(path), decode(path, RATE).seconds


def without(ogg, first, end):
    data, starts = ogg
    return data[: starts[first]] + data[starts[end] :]


JUNK = np.random.default_rng(1).bytes(70_000)


@pytest.mark.parametrize("lost", [1, 3])
def test_an_ogg_file_whose_pages_are_missing_is_refused(tmp_path, ogg, lost):
    """libsndfile reads on after them; its length was that of the whole, and the sound was 1 or 3 s shorter."""
    (tmp_path / "a.ogg").write_bytes(without(ogg, 8, 8 + lost))
    for look in (duration, lambda path: decode(path, RATE), lambda path: decode(path, RATE, 12.0, 2.0)):
        with pytest.raises(AudioError, match=rf"part of the sound is missing: page {8 + lost} follows 7$"):
            look(str(tmp_path / "a.ogg"))


def test_a_capture_of_a_running_stream_is_read(tmp_path, ogg):
    """A radio server sends the headers, then the pages of now."""
    (tmp_path / "a.ogg").write_bytes(without(ogg, page_of_sound(ogg), 10))
    seconds, read = both(str(tmp_path / "a.ogg"))
    assert seconds == pytest.approx(read, abs=0.05) and 5 < read < SECONDS - 1


def page_of_sound(ogg):
    """The first page that ends beyond sample 0."""
    data, starts = ogg
    return next(i for i, at in enumerate(starts) if struct.unpack_from("<q", data, at + 6)[0])


@pytest.mark.parametrize("between", [b"", bytes(3000), JUNK], ids=["nothing", "zeros", "junk"])
def test_bytes_between_the_pages_of_one_recording_lose_nothing(tmp_path, ogg, between):
    data, starts = ogg
    (tmp_path / "a.ogg").write_bytes(data[: starts[8]] + between + data[starts[8] :])
    assert both(str(tmp_path / "a.ogg")) == pytest.approx((SECONDS, SECONDS), abs=0.05)


@pytest.mark.parametrize("tail", [JUNK, bytes(3000), b"OggS", b"TAG" + bytes(125)], ids=["junk", "zeros", "cut", "tag"])
def test_bytes_behind_an_ogg_file_are_nothing(tmp_path, ogg, tail):
    (tmp_path / "a.ogg").write_bytes(ogg[0] + tail)
    assert both(str(tmp_path / "a.ogg")) == pytest.approx((SECONDS, SECONDS), abs=0.05)


@pytest.mark.parametrize("between", [bytes(3000), JUNK], ids=["zeros", "junk"])
def test_another_ogg_file_behind_other_bytes_is_refused(tmp_path, ogg, between):
    (tmp_path / "a.ogg").write_bytes(ogg[0] + between + ogg[0])
    for look in (duration, lambda path: decode(path, RATE)):
        with pytest.raises(AudioError, match="another recording follows the first"):
            look(str(tmp_path / "a.ogg"))


SECOND = {
    "WAV": lambda: encoded(2, "WAV"),
    "AIFF": lambda: encoded(2, "AIFF"),
    "FLAC": lambda: encoded(2, "FLAC"),
    "OGG": lambda: encoded(2, "OGG"),
    "CAF": lambda: encoded(2, "CAF"),
    "MP3": lambda: encoded(2, "MP3"),
    "MP3 with a tag": lambda: b"ID3\x04\0\0\0\0\x02\x00" + bytes(256) + encoded(2, "MP3"),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", ["WAV", "AIFF", "CAF"])
def test_a_recording_of_any_format_behind_one_is_refused(tmp_path, first, second):
    """Taken for samples, an MP3 is noise."""
    path = tmp_path / "both"
    path.write_bytes(encoded(3, first) + SECOND[second]())
    for look in (duration, lambda path: decode(path, RATE)):
        with pytest.raises(AudioError, match="another recording follows"):
            look(str(path))


def test_samples_behind_a_stale_size_are_no_mp3():
    """The bytes of soft sound are often 0xff; three frames in a row are not there by coincidence."""
    soft = (3 * np.random.default_rng(0).standard_normal(500_000)).astype("<i2").tobytes()
    stream = io.BytesIO(soft)
    assert not any(begins(stream, at) for at in range(0, 200_000))
