"""Tags around a sound, recordings put together, and headers that count too little: the sound is read to its end, or
refused with what is missing."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ajepa.audio.containers import inspect
from ajepa.audio.decode import decode, duration
from ajepa.audio.errors import AudioError

RATE = 22_050


def encoded(seconds, fmt, **options):
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * RATE)) / RATE
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.01 * rng.standard_normal(len(time))
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format=fmt, **options)
    return file.getvalue()


def mp3(seconds, xing=True):
    """With one bit rate; the Xing header is a frame of its own at the beginning."""
    data = encoded(seconds, "MP3", bitrate_mode="CONSTANT")
    return data if xing else data[data.find(b"\xff\xf3", 4) :]


def id3(count, footer=False):
    size = bytes(count >> shift & 0x7F for shift in (21, 14, 7, 0))
    head = bytes([4, 0, 0x10 if footer else 0]) + size
    return b"ID3" + head + bytes(count) + (b"3DI" + head if footer else b"")


def chunk(name, data):
    return name + struct.pack("<I", len(data)) + data


def wav(before=b"", data_size=None, after=b"", riff_size=None):
    data = encoded(3, "WAV", subtype="PCM_16")[44:]
    parts = before + chunk(b"data", data)
    if data_size is not None:
        parts = before + b"data" + struct.pack("<I", data_size) + data
    form = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)) + parts + after
    return b"RIFF" + struct.pack("<I", len(form) if riff_size is None else riff_size) + form


def rf64(data_size):
    file = bytearray(encoded(3, "RF64", subtype="PCM_16"))
    sizes = file.find(b"ds64") + 8
    file[sizes : sizes + 16] = struct.pack("<QQ", 0, data_size)
    return bytes(file)


def aiff(sound_size):
    """COMM, which counts frames, is as stale as SSND, which counts bytes."""
    file = bytearray(encoded(3, "AIFF", subtype="PCM_16"))
    sound, common = file.find(b"SSND"), file.find(b"COMM")
    file[sound + 4 : sound + 8] = struct.pack(">I", sound_size + 8 if sound_size else 0)
    file[common + 10 : common + 14] = struct.pack(">I", sound_size // 2)
    file[4:8] = struct.pack(">I", sound + 8 + sound_size)
    return bytes(file)


def au(sound_size):
    file = bytearray(encoded(3, "AU", subtype="PCM_16"))
    file[8:12] = struct.pack(">I", sound_size)
    return bytes(file)


def caf(sound_size):
    file = bytearray(encoded(3, "CAF", subtype="PCM_16"))
    sound = file.find(b"data")
    if sound_size is not None:
        file[sound + 4 : sound + 12] = struct.pack(">q", sound_size)
    return bytes(file)


ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 1 << 29 | 1 << 31) + bytes(2008)
ONE_SECOND = 2 * RATE
TAGGED = {
    "two tags.mp3": lambda: id3(300) + id3(5000) + mp3(3),
    "two tags, no Xing.mp3": lambda: id3(300) + id3(5000) + mp3(3, xing=False),
    "a footer.mp3": lambda: id3(300, footer=True) + mp3(3, xing=False),
    "padding after the tag.mp3": lambda: id3(300) + bytes(1000) + mp3(3, xing=False),
    "a large tag.mp3": lambda: id3(100_000) + mp3(3, xing=False),
    "tags at the end.mp3": lambda: mp3(3, xing=False) + APE + ID3V1,
    "bytes at the end.mp3": lambda: mp3(3, xing=False) + b"junk" * 300,
    "tag.flac": lambda: id3(300) + encoded(3, "FLAC"),
    "a footer.flac": lambda: id3(300, footer=True) + encoded(3, "FLAC"),
    "two tags.flac": lambda: id3(300) + id3(5000) + encoded(3, "FLAC"),
    "tag.wav": lambda: id3(300) + wav(),
    "tag.ogg": lambda: id3(300) + encoded(3, "OGG"),
    "tag.aiff": lambda: id3(300) + encoded(3, "AIFF"),
}  # fmt: skip
COUNTED = {
    "stale sizes.wav": lambda: wav(data_size=ONE_SECOND, riff_size=ONE_SECOND + 36),
    "size 0.wav": lambda: wav(data_size=0, riff_size=0),
    "size 0 after a long chunk.wav": lambda: wav(chunk(b"JUNK", bytes(9000)), data_size=0, riff_size=0),
    "size 0 in an extensible chunk list.wav": lambda: wav(chunk(b"LIST", bytes(31) + b"\0"), data_size=0, riff_size=0),
    "unknown.wav": lambda: wav(data_size=0xFFFF_FFFF, riff_size=0xFFFF_FFFF),
    "chunks after.wav": lambda: wav(after=chunk(b"LIST", bytes(20)) + chunk(b"id3 ", bytes(40))),
    "an unknown chunk after.wav": lambda: wav(after=chunk(b"abcd", bytes(20))),
    "a cut chunk after.wav": lambda: wav(after=chunk(b"bext", bytes(602))[:100]),
    "zeros after.wav": lambda: wav(after=bytes(512)),
    "a tag after.wav": lambda: wav(after=id3(50)),
    "size 0.rf64": lambda: rf64(0),
    "stale size.rf64": lambda: rf64(ONE_SECOND),
    "size 0.aiff": lambda: aiff(0),
    "stale sizes.aiff": lambda: aiff(ONE_SECOND),
    "chunks after.aiff": lambda: encoded(3, "AIFF", subtype="PCM_16") + b"ANNO" + struct.pack(">I", 20) + bytes(20),
    "whole.caf": lambda: caf(None),
    "unknown size.caf": lambda: caf(-1),
    "stale size.caf": lambda: caf(ONE_SECOND + 4),
    "chunks after.caf": lambda: caf(None) + b"info" + struct.pack(">q", 20) + bytes(20),
    "zeros after.caf": lambda: caf(None) + bytes(512),
    "size 0.au": lambda: au(0),
    "stale size.au": lambda: au(ONE_SECOND),
}
JOINED = {
    "joined.mp3": lambda: mp3(2) + mp3(3),
    "joined, no Xing.mp3": lambda: mp3(2, xing=False) + mp3(3, xing=False),
    "ID3v1 between.mp3": lambda: mp3(2) + ID3V1 + mp3(3) + ID3V1,
    "ID3v2 between.mp3": lambda: mp3(2) + id3(5000) + mp3(3),
    "APE between.mp3": lambda: mp3(2) + APE + mp3(3),
    "zeros between.mp3": lambda: mp3(2) + bytes(100_000) + mp3(3),
    "ID3v1 between, no Xing.mp3": lambda: mp3(2, xing=False) + ID3V1 + mp3(3, xing=False),
}


@pytest.fixture
def write(tmp_path):
    def written(data):
        path = tmp_path / "sound"
        path.write_bytes(data)
        return str(path)

    return written


def read(path):
    """Seconds of the whole file, its header's or counted, and of a piece near its end."""
    return decode(path, RATE).seconds, duration(path), decode(path, RATE, 2.5, 0.4).seconds


@pytest.mark.parametrize("name", TAGGED)
def test_tags_are_no_part_of_the_sound(write, name):
    whole, stated, piece = read(write(TAGGED[name]()))
    assert whole == pytest.approx(stated, abs=1e-6) == pytest.approx(3, abs=0.07)
    assert piece == pytest.approx(0.4, abs=0.001)


@pytest.mark.parametrize("name", COUNTED)
def test_a_header_that_counts_too_little_is_not_believed(write, name):
    whole, stated, piece = read(write(COUNTED[name]()))
    assert whole == pytest.approx(stated, abs=1e-9) == pytest.approx(3, abs=0.001)
    assert piece == pytest.approx(0.4, abs=0.001)


@pytest.mark.parametrize(
    "end",
    [b"ID3", b"ID3\4\0\0", b"APETAGEX", b"APETAGEX" + bytes(8), b"x" * 65_530 + b"ID3"],
    ids=lambda end: f"{len(end)} bytes",
)
def test_a_tag_that_is_cut_off_ends_the_search(end):
    sound = mp3(3, xing=False)
    assert inspect(io.BytesIO(sound + end)) == inspect(io.BytesIO(sound))


def test_a_file_of_tags_or_chunks_alone_is_looked_at_in_bounded_time():
    """Counted, not timed: every read is a call of `read`."""

    class Counted(io.BytesIO):
        reads = 0

        def read(self, *args):
            self.reads += 1
            return super().read(*args)

    tags = Counted(mp3(1, xing=False) + (b"x" + id3(0)) * 100_000)
    assert inspect(tags).doubt and tags.reads < 2_000
    chunks = Counted(wav(after=chunk(b"abcd", b"") * 100_000))
    inspect(chunks)
    assert chunks.reads < 100_000


@pytest.mark.parametrize("name", JOINED)
def test_recordings_put_together_are_read_to_the_end_of_the_last(write, name):
    pytest.importorskip("av")
    path = write(JOINED[name]())
    assert decode(path, RATE).seconds == pytest.approx(5, abs=0.15)
    assert duration(path) == pytest.approx(decode(path, RATE).seconds, abs=1e-6)
    assert decode(path, RATE, 4.5, 0.4).seconds == pytest.approx(0.4, abs=0.001)


def test_joined_wav_files_are_refused_with_the_reason(write):
    path = write(wav() + wav())
    for look in (duration, lambda path: decode(path, RATE)):
        with pytest.raises(AudioError, match=r"another recording follows 132,300 bytes of sound"):
            look(path)


def test_a_second_chunk_of_sound_is_refused(write):
    path = write(wav(after=chunk(b"data", bytes(ONE_SECOND))))
    with pytest.raises(AudioError, match="another chunk of sound follows 132,300 bytes"):
        decode(path, RATE)


def test_joined_caf_files_are_refused(write):
    path = write(caf(None) + caf(None))
    for look in (duration, lambda path: decode(path, RATE)):
        with pytest.raises(AudioError, match=r"another recording follows 132,30\d bytes of sound"):
            look(path)


@pytest.mark.parametrize("name", ["a.m4a", "a.wma"])
def test_joined_files_of_pyav_are_refused(tmp_path, name):
    pytest.importorskip("av")
    from helpers.recordings import RECORDINGS

    path = tmp_path / name
    make, seconds, near = RECORDINGS[name]
    make(path)
    assert decode(str(path), RATE).seconds == pytest.approx(seconds, abs=near)
    path.write_bytes(2 * path.read_bytes())
    for look in (duration, lambda path: decode(path, RATE)):
        with pytest.raises(AudioError, match="another recording follows the first"):
            look(str(path))


def test_the_length_of_a_cut_mp3_is_counted(write):
    """Its Xing header speaks of the whole."""
    data = mp3(4)
    path = write(data[: len(data) // 2])
    assert duration(path) == pytest.approx(decode(path, RATE).seconds, abs=0.06) == pytest.approx(2, abs=0.1)


def test_an_empty_wav_with_chunks_after_it_has_no_samples(write):
    form = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)) + chunk(b"data", b"")
    path = write(b"RIFF" + struct.pack("<I", len(form) + 28) + form + chunk(b"LIST", bytes(20)))
    with pytest.raises(AudioError, match="no samples"):
        decode(path, RATE)


def test_more_than_4_gib_after_a_size_of_0_is_left_to_pyav(tmp_path):
    """libsndfile believes the largest number that the header can hold; FFmpeg reads on."""
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(wav(data_size=0, riff_size=0))
        file.truncate((4 << 30) + 2 * ONE_SECOND)  # sparse: silence that takes no space
    with path.open("rb") as file:
        found = inspect(file)
    assert found.doubt == "it is longer than its header can say"
    assert found.patches == ((4, b"\xff" * 4), (40, b"\xff" * 4))


def flac(seconds, level=0.1, seed=0, channels=1, rate=RATE, subtype="PCM_16"):
    noise = level * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format="FLAC", subtype=subtype)
    return file.getvalue()


FLACS = {
    "noise": flac(30), "another": flac(30, seed=1), "short": flac(4), "faint": flac(30, 1e-3), "silence": flac(3, 0.0),
    "one frame": flac(0.1), "stereo of 24 bit": flac(15, channels=2, rate=44_100, subtype="PCM_24"),
}  # fmt: skip


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125), bytes(5000)], ids=["alone", "tag", "zeros"])
@pytest.mark.parametrize("name", FLACS)
def test_a_flac_file_is_one_recording(write, name, tail):
    for head in (b"", id3(300)):
        path = write(head + FLACS[name] + tail)
        assert duration(path) == pytest.approx(decode(path, RATE).seconds)


# One of a single frame, a fifth of a second, is not seen: bytes in a file of millions look like that by coincidence.
@pytest.mark.parametrize("second", [name for name in FLACS if name != "one frame"])
@pytest.mark.parametrize("first", FLACS)
def test_joined_flac_files_are_refused(write, first, second):
    """libsndfile and FFmpeg read the first recording, with nothing said."""
    for head in (b"", id3(300)):
        path = write(head + FLACS[first] + FLACS[second])
        for look in (duration, lambda path: decode(path, RATE)):
            with pytest.raises(AudioError, match="another recording follows the first"):
                look(path)


def test_a_frame_by_coincidence_is_no_recording(write):
    """A header with a right CRC in the middle of a frame's bytes."""
    data, header = bytearray(FLACS["noise"]), FLACS["noise"].find(b"\xff\xf8", 42)
    for at in (30_000, len(data) // 2 + 20_000, len(data) - 20_000):
        data[at : at + 8] = FLACS["noise"][header : header + 8]  # number 0, anywhere
    path = write(bytes(data))
    with Path(path).open("rb", buffering=0) as stream:
        assert inspect(stream).refused == ""


def test_a_cut_flac_file_is_not_taken_for_two(write):
    data = FLACS["noise"]
    path = write(data[: len(data) // 2])
    assert duration(path) == 30  # its header says so
    with pytest.raises(AudioError, match=r"lost sync|psf_fseek"):
        decode(path, RATE)


def test_no_bytes_stop_the_search_for_frames(tmp_path):
    """Bytes that look like headers, in a file that says it is FLAC."""
    rng = np.random.default_rng(0)
    for content in (b"\xff\xf8\x19\x18", b"\xff\xf8\xc9\x08\xfe", b"\xff", rng.bytes(5)):
        path = tmp_path / "a.flac"
        path.write_bytes(FLACS["short"][:42] + content * 200_000)
        with path.open("rb", buffering=0) as stream:
            inspect(stream)
