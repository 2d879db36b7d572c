"""Clips cut from one recording: of an MP3 several are decoded in one pass, and each is the same as when it is alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from helpers.encoded import encode_av
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.audio import mpeg, remote_file, soundfile_decode
from ajepa.audio import pieces as module
from ajepa.audio import read_ahead as ahead
from ajepa.audio.blocks import block_sizes
from ajepa.audio.decode import decode, decode_clip
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import make_table
from ajepa.audio.pieces import with_passes
from ajepa.audio.read_ahead import read_ahead

RATE = 16_000
SECONDS, PIECE = 30, 0.7


def noise(seconds=SECONDS, rate=44_100):
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (200 + 20 * time) * time) + 0.1 * np.random.default_rng(0).standard_normal(
        len(time)
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    for name, options in {
        "a.mp3": {}, "vbr.mp3": {"compression_level": 0.9, "bitrate_mode": "VARIABLE"}, "a.flac": {}, "a.wav": {},
        "a.ogg": {}, "a.opus": {"format": "OGG", "subtype": "OPUS"},
    }.items():  # fmt: skip
        rate = 48_000 if name == "a.opus" else 44_100
        soundfile.write(folder / name, noise(rate=rate), rate, **options)
    encode_av(folder / "a.m4a", "aac", noise(6).astype(np.float32)[None], 44_100)
    return folder


def pieces(path, seconds=SECONDS):
    count = int(seconds / PIECE)
    table = make_table(
        [f"{i:03d}" for i in range(count)], [str(path)] * count, [[]] * count, [],
        start=[i * PIECE for i in range(count)], duration=[PIECE] * count,
    )  # fmt: skip
    return with_passes(table).to_pylist()


def alone(clip):
    return decode_clip(clip, RATE, 10 * RATE)[0].waveform


def opened(monkeypatch):
    """The files that libsndfile opens."""
    found = []
    original = soundfile_decode._file_of
    monkeypatch.setattr(soundfile_decode, "_file_of", lambda stream: found.append(stream) or original(stream))
    return found


@pytest.mark.parametrize("name", ["a.mp3", "vbr.mp3", "a.flac", "a.wav", "a.ogg", "a.opus", "a.m4a"])
def test_a_piece_is_the_same_in_any_block(recordings, name):
    clips = pieces(recordings / name, 6 if name == "a.m4a" else SECONDS)
    wanted = [alone(clip) for clip in clips]
    orders = [range(len(clips)), range(7, 19), np.random.default_rng(1).permutation(len(clips)).tolist()]
    for order in orders:
        order = [i for i in order if i < len(clips)]
        with read_ahead([clips[i] for i in order]) as opener:
            for i in order:
                (waveform, *_), cut = decode_clip(clips[i], RATE, 10 * RATE, opener)
                np.testing.assert_array_equal(waveform, wanted[i])
                assert not cut


@pytest.mark.parametrize("name", ["a.mp3", "vbr.mp3", "a.flac", "a.wav", "a.ogg", "a.opus"])
@pytest.mark.parametrize("start", [3.3, 9.1, 20.0])
def test_a_place_that_was_sought_is_that_of_the_recording(recordings, name, start):
    rate = 48_000 if name == "a.opus" else 44_100
    whole = soundfile.read(recordings / name, dtype="float32")[0]
    part = decode(str(recordings / name), rate, start, 6.0).waveform
    wanted = whole[round(start * rate) :][: len(part)]
    assert len(part) == 6 * rate
    np.testing.assert_allclose(part, wanted, atol=1e-2 if name == "a.opus" else 1e-6)


@pytest.mark.parametrize("name", ["a.mp3", "vbr.mp3"])
def test_the_pieces_of_an_mp3_are_the_recording_and_it_is_opened_once_a_pass(recordings, name, monkeypatch):
    monkeypatch.setattr(module, "PASS_S", 10.0)
    clips = pieces(recordings / name)
    whole = decode(str(recordings / name), 44_100).waveform
    files = opened(monkeypatch)
    with read_ahead(clips) as opener:
        parts = [decode_clip(clip, 44_100, 10 * 44_100, opener)[0].waveform for clip in clips]
    joined = np.concatenate(parts)
    np.testing.assert_allclose(joined, whole[: len(joined)], atol=1e-6)
    assert len(files) == 3


def test_every_thread_opens_it_once(recordings, monkeypatch):
    clips = pieces(recordings / "a.mp3")
    wanted = [alone(clip) for clip in clips]
    files = opened(monkeypatch)
    with read_ahead(clips) as opener, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda clip: decode_clip(clip, RATE, 10 * RATE, opener)[0].waveform, clips))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(files) <= 3


def test_from_a_store_it_is_asked_for_once(recordings, s3, monkeypatch):
    s3.Object("pieces/a.mp3").put(Body=(recordings / "a.mp3").read_bytes())
    clips = pieces("s3://sounds/pieces/a.mp3")
    asked = []
    original = storage.read_small
    monkeypatch.setattr(storage, "read_small", lambda *given: asked.append(given[0]) or original(*given))
    with read_ahead(clips) as opener:
        for clip in clips:
            (waveform, *_), _ = decode_clip(clip, RATE, 10 * RATE, opener)
            np.testing.assert_array_equal(waveform, alone(clip | {"uri": str(recordings / "a.mp3")}))
    assert asked == [clips[0]["uri"]]


def test_files_are_closed_and_what_is_wrong_with_one_stays_with_it(recordings, tmp_path):
    (tmp_path / "text.mp3").write_text("not sound")
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "cut.flac").write_bytes((recordings / "a.flac").read_bytes()[:50_000])
    clips = [clip for name in ("text.mp3", "empty.mp3", "cut.flac", "none.mp3") for clip in pieces(tmp_path / name)[:5]]
    clips += pieces(recordings / "a.mp3")[:5]
    reasons = []
    with read_ahead(clips) as opener:
        for clip in clips:
            try:
                decode_clip(clip, RATE, 10 * RATE, opener)
                reasons.append("")
            except AudioError as error:
                reasons.append(str(error))
        assert opener.pieces is not None
    for i, clip in enumerate(clips):
        try:
            alone(clip)
            assert reasons[i] == ""
        except AudioError as error:
            assert str(error) == reasons[i]
    assert not opener.pieces._stacks


def test_few_pieces_are_sought_and_whole_files_left_alone(tmp_path):
    uris = ["a.mp3"] * 3 + ["b.mp3"] * 4 + ["c.mp3"]
    starts = [0.0, 700.0, 1300.0, 0.0, 10.0, 601.0, 1200.0, 0.0]
    table = make_table([f"{i}" for i in range(8)], uris, [[]] * 8, [], start=starts, duration=[5.0] * 8)
    found = [locator and locator["decoded_from_s"] for locator in with_passes(table)["locator"].to_pylist()]
    assert found == [None] * 3 + [0.0, 0.0, 600.0, 1200.0, None]
    assert with_passes(table)["locator"].null_count == 4


def test_pieces_of_one_pass_stay_in_one_block():
    starts = [10.0 * i for i in range(150)]
    table = make_table(
        [f"{i:03d}" for i in range(150)], ["a.mp3"] * 150, [[]] * 150, [], start=starts, duration=[10.0] * 150
    )
    assert block_sizes(with_passes(table), 40) == [60, 60, 30]
    assert block_sizes(with_passes(table), 130) == [120, 30]


def test_a_store_that_goes_away_ends_no_piece_early(tmp_path, s3, wire, monkeypatch):
    """Reads end where frames do, all of one size: the decoder then takes one that fails for the end of the file, and
    elsewhere for damage, which is noticed anyway."""
    path, frame = tmp_path / "a.mp3", 720
    soundfile.write(path, noise(rate=32_000), 32_000, bitrate_mode="CONSTANT", compression_level=0.5)
    header = path.read_bytes()[:4]
    assert mpeg._frame(header)[0] == frame
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    monkeypatch.setattr(ahead, "SMALL", 1000)  # so that the decoder asks for what it needs
    monkeypatch.setattr(remote_file, "READ_AHEAD", 20 * frame)
    s3.Object("away/a.mp3").put(Body=path.read_bytes())
    clips = pieces("s3://sounds/away/a.mp3")
    with read_ahead(clips) as opener:
        first = decode_clip(clips[0], RATE, 10 * RATE, opener)[0].waveform
        np.testing.assert_array_equal(first, alone(clips[0] | {"uri": str(path)}))
        wire.break_now()
        with pytest.raises(storage.UnreachableError):
            for clip in clips[1:]:
                waveform = decode_clip(clip, RATE, 10 * RATE, opener)[0].waveform
                np.testing.assert_array_equal(waveform, alone(clip | {"uri": str(path)}))
