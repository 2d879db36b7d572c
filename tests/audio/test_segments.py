"""Long recordings cut into consecutive clips: nothing twice, nothing left out without a word."""

import struct

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from ajepa.audio.decode import decode
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.audio.segments import segment
from ajepa.audio.sources import load_manifest
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError

RATE = 16_000
CONFIG = FrontEndConfig(clip_frames=128)  # 1.28 s
DEFAULTS = {"start_s": 0.0, "duration_s": None, "split": "train", "fold": 2, "labels": [1]}


def manifest(*rows):
    return Manifest(pa.Table.from_pylist([DEFAULTS | row for row in rows], MANIFEST_SCHEMA), ["a", "b"], ("said",))


def recording(path, seconds, write_wav, rate=RATE):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    return {"clip_id": path.name, "uri": write_wav(path, samples, rate, subtype="FLOAT")}, samples


def pieces(cut):
    return [(r["clip_id"], round(r["start_s"], 6), round(r["duration_s"], 6)) for r in cut.clips.to_pylist()]


@pytest.mark.parametrize("last", ["pad", "drop"])
def test_a_recording_becomes_consecutive_clips(tmp_path, write_wav, last):
    row, _ = recording(tmp_path / "a.wav", 3.5, write_wav)
    cut = segment(manifest(row), 1.0, last, CONFIG)
    whole = [("a.wav#00000", 0.0, 1.0), ("a.wav#00001", 1.0, 1.0), ("a.wav#00002", 2.0, 1.0)]
    assert pieces(cut) == (whole if last == "drop" else [*whole, ("a.wav#00003", 3.0, 0.5)])
    assert {(r["uri"], r["split"], r["fold"], tuple(r["labels"])) for r in cut.clips.to_pylist()} == {
        (row["uri"], "train", 2, (1,))
    }
    assert cut.label_names == ["a", "b"] and cut.remarks[0] == "said"
    assert f"1 recordings cut into {3 + (last == 'pad')} clips of 1 s" in cut.remarks[1]
    assert ("1 shorter pieces at their ends left out, 0.5 s" in " ".join(cut.remarks)) == (last == "drop")


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_the_pieces_joined_are_the_recording(tmp_path, write_wav, rate):
    row, samples = recording(tmp_path / "a.wav", 4.7, write_wav, rate)
    cut = segment(manifest(row), 1.0, "pad", CONFIG)
    parts = [decode(r["uri"], rate, r["start_s"], r["duration_s"]).waveform for r in cut.clips.to_pylist()]
    np.testing.assert_array_equal(np.concatenate(parts), samples)


def test_a_multiple_of_the_length_has_no_rest(tmp_path, write_wav):
    row, _ = recording(tmp_path / "a.wav", 3.0, write_wav)
    assert len(segment(manifest(row), 1.0, "pad", CONFIG).clips) == 3


def test_short_recordings_and_unreadable_files_stay_one_row(tmp_path, write_wav):
    rows = [recording(tmp_path / f"{s}.wav", s, write_wav)[0] for s in (0.2, 1.0)]
    (tmp_path / "text.wav").write_text("not sound")
    rows += [{"clip_id": n, "uri": str(tmp_path / n)} for n in ("text.wav", "gone.wav")]
    for last in ("pad", "drop"):
        cut = segment(manifest(*rows), 1.0, last, CONFIG)
        assert cut.clips.sort_by("uri").equals(manifest(*rows).clips.sort_by("uri")) and cut.remarks == ("said",)


def test_a_rest_shorter_than_a_window_is_left_out_and_counted(tmp_path, write_wav):
    row, _ = recording(tmp_path / "a.wav", 2.01, write_wav)
    cut = segment(manifest(row), 1.0, "pad", CONFIG)
    assert len(cut.clips) == 2 and "1 shorter pieces at their ends left out, 0.0 s" in cut.remarks[2]


def test_the_part_a_row_names_is_cut_and_no_header_read():
    row = {"clip_id": "v", "uri": "/nowhere/v.flac", "start_s": 30.0, "duration_s": 2.5}
    assert pieces(segment(manifest(row), 1.0, "pad", CONFIG)) == [
        ("v#00000", 30.0, 1.0), ("v#00001", 31.0, 1.0), ("v#00002", 32.0, 0.5)
    ]  # fmt: skip


def test_a_row_that_starts_within_its_file_is_cut_from_there(tmp_path, write_wav):
    row, _ = recording(tmp_path / "a.wav", 3.0, write_wav)
    assert pieces(segment(manifest(row | {"start_s": 1.5}), 1.0, "pad", CONFIG)) == [
        ("a.wav#00000", 1.5, 1.0), ("a.wav#00001", 2.5, 0.5)
    ]  # fmt: skip


def test_pieces_of_the_full_clip_are_not_cut_again(tmp_path, write_wav):
    """1.28 s hold one sample more than the 128 frames of a clip: it is the next clip's first."""
    row, _ = recording(tmp_path / "a.wav", 4.0, write_wav)
    cut = segment(manifest(row), 1.28, "pad", CONFIG)
    assert pieces(cut)[1] == ("a.wav#00001", 1.28, round(CONFIG.clip_samples / RATE, 6))


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.3, -1.0, float("nan")])
def test_lengths_that_do_not_fit_are_refused(seconds):
    with pytest.raises(UserError, match=r"--segment .* must be above 0.025 and at most 1.28 s"):
        segment(manifest(), seconds, "pad", CONFIG)


def test_a_header_that_claims_weeks_is_not_believed(tmp_path):
    path = tmp_path / "liar.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), RATE)
    data = bytearray(path.read_bytes())
    (word,) = struct.unpack(">Q", data[18:26])  # rate, channels, bits, and 36 bits of total samples
    data[18:26] = struct.pack(">Q", word | (2**36 - 1))
    path.write_bytes(data)
    assert soundfile.info(path).duration > 40 * 24 * 3600
    cut = segment(load_manifest("folder", str(tmp_path)), 1.0, "pad", CONFIG)
    assert len(cut.clips) == 1 and "1 files claim more than 168 hours and were not cut: liar.flac" in cut.remarks[-1]


def test_three_hours_are_1080_clips_of_ten_seconds(tmp_path, write_wav):
    path = tmp_path / "hours.wav"
    write_wav(path, np.zeros(1), RATE, subtype="PCM_16")
    size = 3 * 3600 * RATE * 2
    with path.open("r+b") as file:
        file.truncate(44 + size)  # sparse: silence that takes no space
        for place, value in ((4, 36 + size), (40, size)):
            file.seek(place)
            file.write(struct.pack("<I", value))
    clips = segment(load_manifest("folder", str(tmp_path)), 10.0, "pad", FrontEndConfig()).clips.to_pylist()
    assert len(clips) == 1080 and clips[-1]["clip_id"] == "hours.wav#01079"
    assert len(decode(clips[-1]["uri"], RATE, clips[-1]["start_s"], clips[-1]["duration_s"]).waveform) == 160_000
