"""Sound in HDF5 files: PANNs' packs of samples and PaSST's of MP3 files."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.containers import Sound, bad_rows, flac, loose_dataset, make_shards, mp3_pack, pack
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.audio import remote_file
from ajepa.audio.decode import decode_clip
from ajepa.audio.errors import AudioError
from ajepa.audio.read_ahead import read_ahead
from ajepa.audio.sources import load_manifest
from ajepa.audio.statistics import Statistics
from ajepa.errors import UserError
from ajepa.shards.verify import verify_dataset

RATE = 32_000


def noise(clips, seconds=0.5):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (clips, round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_pack_of_samples(tmp_path, dtype, write_wav):
    waveform = np.round(noise(6) * 32767) / 32767
    waveform[4] = 0
    stored = np.round(waveform * 32767).astype(np.int16) if dtype == np.int16 else waveform.astype(np.float32)
    target = np.zeros((6, 3), bool)
    target[np.arange(6), np.arange(6) % 3] = True
    pack(tmp_path / "in/balanced_train.h5", stored, target=target)
    with h5py.File(tmp_path / "in/index.h5", "w") as file:  # PANNs' indices hold no sound
        file.create_dataset("audio_name", data=np.array(["Y.wav"], "S20"))
    (tmp_path / "in/class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0,A\n1,/m/1,B\n2,/m/2,C\n")
    manifest = load_manifest("hdf5", str(tmp_path / "in"))
    assert manifest.label_names == ["A", "B", "C"]
    assert manifest.clips["labels"].to_pylist() == [[i % 3] for i in range(6)]
    assert manifest.clips["split"].to_pylist() == ["balanced_train"] * 6
    assert any("1 files without sound left out: index.h5" in remark for remark in manifest.remarks)
    dataset = make_shards(manifest, tmp_path / "shards")
    assert sum(verify_dataset(dataset.path)) == 5
    assert bad_rows(dataset) == {
        "Yid00000004": "waveform: a row of zeros: this clip was missing when the file was made"
    }
    (tmp_path / "wav").mkdir()
    for i in (0, 1, 2, 3, 5):
        write_wav(tmp_path / f"wav/Yid{i:08d}", waveform[i].astype(np.float32), RATE, format="WAV", subtype="FLOAT")
    (tmp_path / "wav/list.csv").write_text("uri\n" + "".join(f"Yid{i:08d}\n" for i in (0, 1, 2, 3, 5)))
    loose = make_shards(load_manifest("manifest", str(tmp_path / "wav/list.csv")), tmp_path / "loose")
    ours: Statistics = dataset.statistics
    np.testing.assert_allclose(ours.mean, loose.statistics.mean, atol=2e-5 if dtype == np.int16 else 0)


def test_mp3_files_in_rows_and_labels_in_bits(tmp_path):
    clips = [Sound(f"clip{i}", flac(i, 0.5, 32_000, "MP3"), (str(i), "8")) for i in range(4)]
    target = np.zeros((4, 9), bool)
    for i in range(4):
        target[i, [i, 8]] = True
    manifest = load_manifest("hdf5", mp3_pack(tmp_path / "in/eval.hdf", clips, target))
    assert manifest.label_names == [str(i) for i in range(9)]  # seven bits at the end are no classes
    assert manifest.clips["labels"].to_pylist() == [[i, 8] for i in range(4)]
    dataset = make_shards(manifest, tmp_path / "shards")
    loose = loose_dataset(tmp_path, [Sound(c.id, c.data, c.labels, "test") for c in clips])
    assert [r["digest"] for r in dataset.read_columns(["digest"]).to_pylist()] == [
        r["digest"] for r in loose.read_columns(["digest"]).to_pylist()
    ]


def test_from_a_store(tmp_path, s3):
    s3.Object("packs/a.h5").put(Body=open(pack(tmp_path / "a.h5", noise(5)), "rb").read())  # noqa: SIM115, PTH123
    here = make_shards(load_manifest("hdf5", str(tmp_path / "a.h5")), tmp_path / "here")
    away = make_shards(load_manifest("hdf5", "s3://sounds/packs"), tmp_path / "away")
    assert here.content_hash == away.content_hash


def test_a_store_that_goes_away_is_no_fault_of_the_rows(tmp_path, s3, wire, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    s3.Object("away/a.h5").put(Body=Path(pack(tmp_path / "a.h5", noise(20, 4.0))).read_bytes())
    clips = load_manifest("hdf5", "s3://sounds/away").clips.to_pylist()
    with read_ahead(clips) as opener:
        assert len(decode_clip(clips[0], RATE, 10 * RATE, opener)[0].waveform) == 4 * RATE
        wire.break_now()
        with pytest.raises(storage.UnreachableError):
            for clip in clips[1:]:
                decode_clip(clip, RATE, 10 * RATE, opener)


def test_names_are_read_through_a_short_break(tmp_path, s3, wire, monkeypatch):
    """The connection is cut while h5py reads the file, and there again when it was waited for once."""
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(remote_file, "READ_AHEAD", 4096)
    waits, calls, read = [], [], remote_file.RemoteFile.readinto
    monkeypatch.setattr(retries, "pause", lambda seconds, _: (waits.append(seconds), wire.mend()))

    def cut_at_the_third(self, buffer):
        calls.append(1)
        if len(calls) == 3:
            wire.break_now()
        return read(self, buffer)

    path = Path(pack(tmp_path / "a.h5", noise(20), target=np.eye(20, dtype=bool)))
    s3.Object("break/a.h5").put(Body=path.read_bytes())
    monkeypatch.setattr(remote_file.RemoteFile, "readinto", cut_at_the_third)
    manifest = load_manifest("hdf5", "s3://sounds/break/a.h5")
    assert waits and manifest.clips["clip_id"].to_pylist() == [f"Yid{i:08d}" for i in range(20)]
    assert manifest.clips["labels"].to_pylist() == [[i] for i in range(20)]


def test_damage_in_a_store_is_said_and_not_asked_for_again(tmp_path, s3, monkeypatch):
    data = Path(pack(tmp_path / "a.h5", noise(5))).read_bytes()
    clips = load_manifest("hdf5", str(tmp_path / "a.h5")).clips.to_pylist()
    s3.Object("damaged/a.h5").put(Body=b"not HDF5 " * 100)
    s3.Object("damaged/b.h5").put(Body=data[: len(data) // 2])
    monkeypatch.setattr(retries, "pause", lambda *_: pytest.fail("asked again"))
    for name in "ab":
        assert "cannot be read as HDF5" in refusal(f"s3://sounds/damaged/{name}.h5")
    with pytest.raises(AudioError, match="read: "):
        decode_clip(clips[0] | {"uri": "s3://sounds/damaged/a.h5"}, RATE, 10 * RATE)


def refusal(path) -> str:
    with pytest.raises(UserError) as raised:
        load_manifest("hdf5", str(path))
    return str(raised.value)


def test_refusals(tmp_path):
    assert "16000 of float32" in refusal(pack(tmp_path / "a.h5", noise(1)[0], names=["a"]))
    assert "of complex64" in refusal(pack(tmp_path / "b.h5", noise(2).astype(np.complex64)))
    assert "no attribute sample_rate" in refusal(pack(tmp_path / "c.h5", noise(2), rate=None))
    assert "3 names for 2 rows" in refusal(pack(tmp_path / "d.h5", noise(2), names=["a", "b", "c"]))
    assert "hold no sound (expected: waveform" in refusal(pack(tmp_path / "e.h5", noise(2), array="x"))
    assert "not one row for each clip" in refusal(pack(tmp_path / "f.h5", noise(2), target=np.zeros((3, 2), bool)))
    (tmp_path / "g.h5").write_bytes(b"not HDF5 " * 100)
    assert "cannot be read as HDF5" in refusal(tmp_path / "g.h5")
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/0,A\n")
    assert "names 1 classes, the files have 2" in refusal(
        pack(tmp_path / "h.h5", noise(2), target=np.ones((2, 2), bool))
    )


def test_a_class_a_byte_and_what_is_no_target(tmp_path):
    target = np.eye(3, dtype=np.uint8)
    manifest = load_manifest("hdf5", pack(tmp_path / "a.h5", noise(3), target=target))
    assert manifest.label_names == ["0", "1", "2"] and manifest.clips["labels"].to_pylist() == [[0], [1], [2]]
    soft = pack(tmp_path / "b.h5", noise(2), target=np.full((2, 3), 0.9, np.float32))
    assert "other float32 than 0 and 1" in refusal(soft)
    assert "other" in refusal(pack(tmp_path / "c.h5", noise(2), target=np.array([[b"dog"], [b"cat"]])))
    for i, rate in enumerate([[32_000, 44_100], -1, 1]):
        path = pack(tmp_path / f"rate{i}.h5", noise(2), rate=None)
        with h5py.File(path, "a") as file:
            file.attrs["sample_rate"] = rate
        assert "is no rate in Hz" in refusal(path)
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("waveform")
        file.create_dataset("audio_name", data=np.array([b"a"]))
    assert "is a group, not an array" in refusal(tmp_path / "group.h5")
    with pytest.raises(UserError, match="no array 'classes'"):
        load_manifest("hdf5", pack(tmp_path / "d.h5", noise(2)), columns=["labels=classes"])
