"""What recorders, browsers and pipes leave is read to its real end, whatever its header and its name say; a piece of it
is that part of the whole."""

import io

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from ajepa.audio import decode as decoding
from ajepa.audio import soundfile_decode
from ajepa.audio.decode import decode, duration
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.audio.segments import segment
from ajepa.config import FrontEndConfig

pytest.importorskip("av")
from helpers.recordings import RECORDINGS, SECONDS, encode, rising


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Path of each recording by its name."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, (write, _, _) in RECORDINGS.items():
        write(folder / name)
    return {name: str(folder / name) for name in RECORDINGS}


@pytest.fixture(params=RECORDINGS)
def recording(request, recordings):
    """(path, seconds, tolerance)"""
    return recordings[request.param], *RECORDINGS[request.param][1:]


def own_rate(path):
    return decode(path, 16_000, duration_s=0.1).source_rate


def test_it_is_read_to_its_end(recording):
    path, seconds, tolerance = recording
    decoded = decode(path, own_rate(path))
    assert abs(decoded.seconds - seconds) <= tolerance + 1e-9
    assert abs(duration(path) - decoded.seconds) <= 0.03  # of MP4: what its header says, which may be trusted


def test_its_last_second_sounds_as_it_should(recording):
    """And not only has as many samples: the tone has risen by then."""
    path, _, tolerance = recording
    rate = own_rate(path)
    last = decode(path, rate).waveform[-rate - round(tolerance * rate) :][:rate]
    spectrum = np.abs(np.fft.rfft(last * np.hanning(len(last))))
    pitch = spectrum.argmax() * rate / len(last)
    assert pitch == pytest.approx(200 + 1800 * (SECONDS - 0.5) / SECONDS, abs=60)


@pytest.mark.parametrize("start_s", [0.013, 1.0, 5.4321, 10.9])
def test_a_piece_is_that_part_of_the_whole(recording, start_s):
    path, _, _ = recording
    rate = own_rate(path)
    whole = decode(path, rate).waveform
    piece = decode(path, rate, start_s=start_s, duration_s=0.9).waveform
    first = round(start_s * rate)
    np.testing.assert_allclose(piece, whole[first : first + len(piece)], atol=1e-4)
    assert len(piece) == round(0.9 * rate)


@pytest.mark.slow
def test_no_second_is_lost_and_none_invented_by_segments(recordings):
    names = sorted(recordings)
    rows = [
        {"clip_id": n, "uri": recordings[n], "start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}
        for n in names
    ]
    manifest = Manifest(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), [])
    clips = segment(manifest, 3.0, "drop", FrontEndConfig(clip_frames=304)).clips.to_pylist()
    for name in names:
        own = [clip for clip in clips if clip["uri"] == recordings[name]]
        _, seconds, tolerance = RECORDINGS[name]
        assert len(own) in {round(seconds / 3), int((seconds - tolerance) / 3)}, name
        assert all(len(decode(c["uri"], 16_000, c["start_s"], c["duration_s"]).waveform) for c in own), name


def test_a_later_recording_with_another_rate_is_brought_to_the_first(tmp_path):
    for name, rate in (("a", 44_100), ("b", 32_000)):
        encode(tmp_path / name, "aac", rate, "adts")
    (tmp_path / "both.aac").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    decoded = decode(str(tmp_path / "both.aac"), 44_100)
    assert decoded.source_rate == 44_100 and decoded.seconds == pytest.approx(2 * SECONDS, abs=0.2)


def test_what_neither_reads_to_its_end_is_bad(tmp_path):
    """A chain of Ogg recordings with different rates, which FFmpeg does not follow."""
    for name, rate in (("a", 16_000), ("b", 32_000)):
        soundfile.write(tmp_path / name, rising(rate), rate, format="OGG", subtype="VORBIS")
    (tmp_path / "both.ogg").write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(AudioError, match=r"^decode: Ogg: Not yet implemented in FFmpeg"):
        decode(str(tmp_path / "both.ogg"), 16_000)


WITHOUT_AV = {
    "m4a_named.mp3": r"this is MP4 \(M4A\): PyAV",
    "m4a_named.wav": r"this is MP4 \(M4A\): PyAV",
    "adts_named.flac": r"this is AAC \(ADTS\): PyAV",
    "webm_named.opus": r"this is Matroska \(WebM\): PyAV",
    "flac_in_ogg.oga": r"this is FLAC in Ogg: PyAV",
    "wma_named.wav": r"this is ASF \(WMA\): PyAV",
    "chained.ogg": r"this is Ogg and several recordings follow one another in it: PyAV",
    "two.mp3": r"this is MP3 and several recordings follow one another in it, or part of it is no sound: PyAV",
    "no_length.mp3": r"this is MP3 and its bit rate varies and it does not say how long it is: PyAV",
    "stream.flac": r"this is FLAC and it does not say how long it is: PyAV",
}


@pytest.mark.parametrize("name", WITHOUT_AV)
def test_without_pyav_the_reason_names_the_container_and_what_reads_it(recordings, monkeypatch, name):
    monkeypatch.setattr(decoding, "has_av", lambda: False)
    for work in (lambda: decode(recordings[name], 16_000), lambda: duration(recordings[name])):
        with pytest.raises(AudioError, match=rf"^decode: {WITHOUT_AV[name]} reads it, pip install 'ajepa\[av\]'$"):
            work()


@pytest.mark.parametrize("name", sorted(set(RECORDINGS) - set(WITHOUT_AV)))
def test_without_pyav_the_others_are_whole_or_bad(recordings, monkeypatch, name):
    whole = decode(recordings[name], 16_000).seconds
    monkeypatch.setattr(decoding, "has_av", lambda: False)
    try:
        assert decode(recordings[name], 16_000).seconds == pytest.approx(whole, abs=0.1)
    except AudioError as error:
        assert str(error).startswith("decode: ")


TEXT = b"these are notes, not sound\n" * 20
BAD = {
    "text.wav": TEXT,
    "text.flac": TEXT,
    "text.m4a": TEXT,
    "riff.wav": b"RIFF\x10\0\0\0WAVEfmt junkjunkjunk",
    "ogg.ogg": b"OggS" + bytes(100),
    "mp4.m4a": b"\0\0\0\x18ftypM4A " + bytes(200),
    "webm.webm": b"\x1aE\xdf\xa3" + bytes(200),
    "id3.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(300),
    "flac.flac": b"fLaC" + bytes(60),
    "au.au": b".snd" + bytes(40),
}


@pytest.mark.parametrize("name", BAD)
def test_a_reason_depends_on_the_file_alone(tmp_path, monkeypatch, name):
    """Not on descriptors, addresses, or how the file is opened."""
    (tmp_path / name).write_bytes(BAD[name])
    reasons = []
    for others in range(3):
        files = [(tmp_path / name).open("rb") for _ in range(7 * others)]
        decoding._known.clear()
        with pytest.raises(AudioError) as error:
            decode(str(tmp_path / name), 16_000)
        reasons.append(str(error.value))
        [file.close() for file in files]
    monkeypatch.setattr(soundfile_decode, "_file_of", lambda stream: io.BufferedReader(stream))
    with pytest.raises(AudioError) as error:
        decode(str(tmp_path / name), 16_000)
    assert {*reasons, str(error.value)} == {reasons[0]}
    assert reasons[0].startswith("decode: ") and str(tmp_path) not in reasons[0] and "0x" not in reasons[0]


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile {wav}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{wav}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
)
@pytest.mark.parametrize("end", ["mp3", "m4a", "wav"])
def test_a_file_cannot_name_others_to_be_read(tmp_path, write_wav, text, end):
    wav = write_wav(tmp_path / "secret.wav", rising(16_000, 1.0))
    (tmp_path / f"list.{end}").write_text(text.format(wav=wav))
    with pytest.raises(AudioError, match=r"^decode: "):
        decode(str(tmp_path / f"list.{end}"), 16_000)
