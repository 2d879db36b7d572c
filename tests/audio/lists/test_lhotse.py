"""Recordings and cuts of lhotse."""

import gzip
import json

import pytest
from helpers.lists import cut, lines, recording, supervision


def test_recordings_are_read_whole(lists):
    path = lists.write(
        "recordings.jsonl.gz", gzip.compress(lines(recording("y", "sub/c.wav"), recording("x", "a.wav")).encode())
    )
    clips, _, remarks = lists.load(path)
    assert clips == [lists.clip("x", "a.wav"), lists.clip("y", "sub/c.wav")] and remarks == ()


def test_cuts_are_pieces_of_their_recordings(lists):
    path = lists.write(
        "cuts.jsonl", lines(cut("x", "a.wav"), cut("y", "a.wav", 0, 1, supervisions=[supervision("hi")]))
    )
    clips, _, remarks = lists.load(path)
    assert clips == [
        lists.clip("x", "a.wav", start_s=0.25, duration_s=0.5), lists.clip("y", "a.wav", duration_s=1.0)
    ]  # fmt: skip
    assert remarks == ("columns of the manifest left out: text",)


def test_labels_are_those_of_custom_fields_or_what_is_named(lists):
    said = [supervision("hi", speaker="ann", custom={"label": "dog"}), supervision("ho", speaker="bob", custom={})]
    path = lists.write("cuts.jsonl", lines(cut("x", "a.wav", supervisions=said), cut("y", "b.wav", custom={"snr": 3})))
    clips, names, remarks = lists.load(path)
    assert [clip.get("labels") for clip in clips] == [[0], None] and names == ["dog"]
    assert "column 'label' of the manifest taken for 'labels'" in remarks
    assert remarks[-1] == "columns of the manifest left out: snr, speaker, text"
    clips, names, _ = lists.load(path, "labels=speaker")
    assert [clip.get("labels") for clip in clips] == [[0, 1], None] and names == ["ann", "bob"]


def test_an_array_of_cuts_is_read(lists):
    clips, _, _ = lists.load(lists.write("cuts.json", json.dumps([cut("x", "a.wav"), cut("y", "b.wav")])))
    assert [clip["clip_id"] for clip in clips] == ["x", "y"]


def test_what_is_no_piece_of_a_file_is_left_out_and_named(lists):
    def of(kind, source):
        return recording(kind, "") | {"sources": [{"type": kind, "channels": [0], "source": source}]}

    mixed = {"id": "m", "type": "MixedCut", "tracks": []}
    bare = {key: value for key, value in cut("f", "a.wav").items() if key != "recording"}
    rows = [recording("x", "a.wav"), of("command", "sox b.wav -t wav - |"), of("command", "x |"),
            of("memory", "UklGRg"), of("url", "https://host/a.flac"), mixed, bare]  # fmt: skip
    path = lists.write("list.jsonl", lines(*rows))
    clips, _, remarks = lists.load(path)
    assert clips == [lists.clip("x", "a.wav")]
    assert remarks[:2] == (
        "entries of lhotse left out: 2, a source of type 'command' is not read ('command': 'sox b.wav -t wav - |')",
        "entries of lhotse left out: 1, a source of type 'memory' is not read ('memory': 'UklGRg')",
    )
    assert remarks[2:5] == (
        "entries of lhotse left out: 1, a source of type 'url' is not read ('url': 'https://host/a.flac')",
        "entries of lhotse left out: 1, a MixedCut is no piece of one file ('m')",
        "entries of lhotse left out: 1, a cut without a recording ('f')",
    )


def test_what_is_left_out_is_listed_as_missing(lists):
    from ajepa.audio.sources import load_manifest

    command = recording("gone", "") | {"sources": [{"type": "command", "channels": [0], "source": "x |"}]}
    path = lists.write("list.jsonl", lines(recording("x", "a.wav"), command))
    assert load_manifest("manifest", str(path)).missing == ("gone",)
    path.write_text(lines(command, command))
    assert "no entry of the manifest" in lists.refused(path)
    assert lists.refused(path).endswith(
        "entries of lhotse left out: 2, a source of type 'command' is not read ('gone': 'x |')"
    )


def test_a_file_url_is_a_file(lists):
    source = {"type": "url", "channels": [0], "source": (lists.folder / "a.wav").as_uri()}
    clips, _, _ = lists.load(lists.write("list.jsonl", lines(recording("x", "") | {"sources": [source]})))
    assert clips == [lists.clip("x", "a.wav")]


def test_channels_and_transforms_are_remarked(lists):
    stereo = recording("r", "a.wav", transforms=[{"name": "Speed"}])
    stereo["sources"][0]["channels"] = [0, 1]
    _, _, remarks = lists.load(lists.write("list.jsonl", lines(cut("x", "") | {"recording": stereo})))
    assert remarks == (
        "recordings with transforms, which are not applied: 1",
        "cuts that choose among the channels of their file, all of which are averaged: 1",
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (recording("r", "") | {"sources": [{"type": "file", "channels": [i], "source": f"{i}.wav"} for i in (0, 1)]},
         "the recording 'r' has its channels in 2 files; a clip is one file: join them first"),
        ({key: value for key, value in cut("x", "a.wav").items() if key != "start"}, "(without 'start')"),
        (cut("x", "a.wav", start="soon"), "(could not convert string to float: 'soon')"),
        (recording("r", "") | {"sources": ["a.wav"]}, "is no recording or cut of lhotse ("),
    ],
)  # fmt: skip
def test_entries_that_lack_something_are_refused_with_their_line(lists, row, said):
    path = lists.write("list.jsonl", lines(recording("x", "a.wav"), row))
    assert f"line 2 of the manifest {str(path)!r}" in lists.refused(path) and said in lists.refused(path)


def test_a_shar_is_refused_in_one_line(lists):
    """Its sound lies in tar archives beside the cuts."""
    place = {"sources": [{"type": "shar", "channels": [0], "source": ""}]}
    path = lists.write("cuts.000000.jsonl.gz", gzip.compress(
        lines(*(cut(name, "") | {"recording": recording(name, "") | place} for name in "xy")).encode()
    ))  # fmt: skip
    assert lists.refused(path).endswith(
        "can be read: entries of lhotse left out: 2, the sound of a Shar is in its recording.*.tar: --source "
        "webdataset ('x')"
    )
    (lists.folder / "shar").mkdir()
    assert "is a folder without wav.scp" in lists.refused(lists.folder / "shar")


def test_supervisions_and_features_alone_are_refused_in_one_line(lists):
    path = lists.write("supervisions.jsonl", lines(supervision("hi", speaker="ann", custom={"label": "dog"})))
    assert "has no column `uri`" in lists.refused(path)
    features = {"type": "fbank", "num_frames": 100, "num_features": 80, "frame_shift": 0.01, "sampling_rate": 16_000,
                "start": 0, "duration": 1.0, "storage_type": "lilcom_chunky", "storage_path": "feats.lca",
                "storage_key": "0", "recording_id": "r", "channels": 0}  # fmt: skip
    assert "has no column `uri`" in lists.refused(lists.write("features.jsonl", lines(features)))
