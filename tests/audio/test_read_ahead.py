"""Files of a store are asked for ahead of the decoder: several at a time, each once, with the same result."""

import threading
from collections import Counter

import numpy as np
import pytest
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.audio import read_ahead as module
from ajepa.audio.decode import decode as decode_file
from ajepa.audio.errors import AudioError
from ajepa.audio.read_ahead import AT_ONCE, read_ahead

RATE = 16_000


@pytest.fixture(scope="module")
def uris(s3, tmp_path_factory):
    """20 files of different lengths; their sound is that of their number."""
    import soundfile

    folder = tmp_path_factory.mktemp("sounds")
    for i in range(20):
        path = folder / f"{i}.wav"
        soundfile.write(path, np.random.default_rng(i).uniform(-0.5, 0.5, 1000 + 100 * i), RATE, subtype="FLOAT")
        s3.Object(f"ahead/{i}.wav").put(Body=path.read_bytes())
    return [f"s3://sounds/ahead/{i}.wav" for i in range(20)]


def clips(uris):
    """Manifest rows of whole files."""
    return [{"uri": uri, "locator": None} for uri in uris]


def decode(uri, rate, *times, opener=None):
    return decode_file(uri, rate, *times, opened=opener and (lambda: opener({"uri": uri, "locator": None})))


def counted(monkeypatch, before=lambda: None):
    """How often each file is read in one piece."""
    asked: Counter[str] = Counter()
    read_small = storage.read_small

    def read(uri, *more):
        asked[uri] += 1
        before()
        return read_small(uri, *more)

    monkeypatch.setattr(storage, "read_small", read)
    return asked


@pytest.mark.parametrize("small", [module.SMALL, 4500], ids=["small", "small and large"])
def test_the_sound_is_the_same(uris, monkeypatch, small):
    monkeypatch.setattr(module, "SMALL", small)
    with read_ahead(clips(uris)) as opener:
        for i, uri in enumerate(uris):
            waveform = decode(uri, RATE, opener=opener).waveform
            expected = np.random.default_rng(i).uniform(-0.5, 0.5, 1000 + 100 * i).astype(np.float32)
            np.testing.assert_array_equal(waveform, expected)


def test_as_many_as_allowed_are_asked_at_once(uris, monkeypatch):
    meeting = threading.Barrier(AT_ONCE)
    monkeypatch.setattr(module, "SMALL", 1 << 20)
    asked = counted(monkeypatch, lambda: meeting.wait(60) if not meeting.broken and len(asked) <= AT_ONCE else None)
    with read_ahead(clips(uris)) as opener:
        first, second, *_ = clips(uris)
        with opener(first):
            assert list(asked) == uris[:AT_ONCE]  # all in flight together, and no more before the first is done with
        with opener(second):
            pass
    assert max(asked.values()) == 1


def test_pieces_of_a_file_are_read_from_one_copy(uris, monkeypatch):
    asked = counted(monkeypatch)
    pieces = [(uri, start) for uri in uris[:3] for start in (0.0, 0.02, 0.04)]
    with read_ahead(clips(uri for uri, _ in pieces)) as opener:
        for uri, start in pieces:
            assert len(decode(uri, RATE, start, 0.02, opener=opener).waveform) == 320
    assert asked == dict.fromkeys(uris[:3], 1)


def test_files_in_any_order_and_by_several_threads(uris, monkeypatch):
    asked = counted(monkeypatch)
    sizes: dict[str, int] = {}
    with read_ahead(clips(uris)) as opener:

        def work(part):
            for uri in part:
                sizes[uri] = len(decode(uri, RATE, opener=opener).waveform)

        threads = [threading.Thread(target=work, args=(uris[k::3][::-1],)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sizes == {uri: 1000 + 100 * i for i, uri in enumerate(uris)} and max(asked.values()) == 1


def test_what_cannot_be_read_has_the_same_reason(uris, tmp_path):
    missing = ["s3://sounds/ahead/none.wav", str(tmp_path / "none.wav")]
    with read_ahead(clips([*missing, *uris])) as opener:
        for uri in missing:
            with pytest.raises(AudioError) as alone:
                decode(uri, RATE)
            with pytest.raises(AudioError) as ahead:
                decode(uri, RATE, opener=opener)
            assert str(alone.value) == str(ahead.value)
        assert len(decode(uris[0], RATE, opener=opener).waveform) == 1000


def test_a_store_that_goes_away_is_said_by_the_decoder(uris, wire, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    with read_ahead(clips(uris)) as opener:
        decode(uris[0], RATE, opener=opener)
        wire.break_now()
        with pytest.raises(storage.UnreachableError):
            for uri in uris[1:]:
                decode(uri, RATE, opener=opener)


def test_whoever_leaves_does_not_wait_for_a_store_that_is_away(uris, wire, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setenv(retries.PATIENCE, "600")
    storage.read_small(uris[0], 1 << 20)  # it has answered
    wire.break_now()
    with read_ahead(clips(uris)):
        pass
    for thread in threading.enumerate():
        if thread.name.startswith("read-ahead"):
            thread.join(60)
            assert not thread.is_alive()


def test_local_files_are_left_alone(tmp_path, monkeypatch):
    asked = counted(monkeypatch)
    (tmp_path / "a.txt").write_text("abc")
    (clip,) = clips([str(tmp_path / "a.txt")])
    with read_ahead([clip]) as opener, opener(clip) as stream:
        assert stream.read(9) == b"abc"
    assert not asked
