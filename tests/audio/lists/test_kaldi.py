"""Kaldi's wav.scp, alone and with segments and utt2label."""

import pytest

SCP = "rec1 a.wav\nrec2\tsub/c.wav\n"


@pytest.mark.parametrize("given", ["wav.scp", "."])
def test_a_wav_scp_is_read_as_a_file_and_as_its_folder(lists, given):
    lists.write("wav.scp", SCP)
    clips, _, remarks = lists.load(lists.folder / given)
    assert clips == [lists.clip("rec1", "a.wav"), lists.clip("rec2", "sub/c.wav")] and remarks == ()


def test_segments_and_labels_beside_it_are_read(lists):
    lists.write("wav.scp", SCP + "rec3 b.wav\n")
    lists.write("segments", "utt1 rec1 0.25 0.75\nutt2 rec1 0.5 -1\nutt3 rec2 0 1\n")
    lists.write("utt2label", "utt1 dog cat\nutt3 dog\nutt9 bird\n")
    clips, names, remarks = lists.load(lists.folder)
    assert clips == [
        lists.clip("utt1", "a.wav", start_s=0.25, duration_s=0.5, labels=[1, 0]),
        lists.clip("utt2", "a.wav", start_s=0.5),
        lists.clip("utt3", "sub/c.wav", duration_s=1.0, labels=[1]),
    ]
    assert names == ["cat", "dog"]
    assert remarks == (
        "clips are those of segments beside the manifest; files without one: 1",
        "labels are those of utt2label beside the manifest; clips without one: 1, lines without a clip: 1",
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rec3 flac -c -d -s b.flac |", "line 3 of {path!r} is a command, and no command of a list is run: 'rec3 flac"),
        ("rec3 -", "line 3 of {path!r} is a command"),
        ("rec3 wavs.ark:1234", "line 3 of {path!r} points into an archive, which is not read: 'rec3 wavs.ark:1234'"),
        ("rec3", "line 3 of {path!r} has no file: 'rec3'"),
        ("rec1 b.wav", "line 3 of {path!r} has 'rec1' a second time"),
    ],
)
def test_lines_that_name_no_file_are_refused(lists, line, said):
    path = lists.write("wav.scp", f"{SCP}{line}\n")
    assert said.replace("{path!r}", repr(str(path))) in lists.refused(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("utt2 rec9 0 1", "names the recording 'rec9', which {scp!r} has no line of"),
        ("utt2 rec1 0", "is not `utterance recording start end`: 'utt2 rec1 0'"),
        ("utt2 rec1 zero 1", "has a time that is no number of seconds: 'utt2 rec1 zero 1'"),
    ],
)
def test_segments_that_cannot_be_read_are_refused(lists, line, said):
    scp = lists.write("wav.scp", SCP)
    path = lists.write("segments", f"utt1 rec1 0 1\n{line}\n")
    assert lists.refused(lists.folder) == f"line 2 of {str(path)!r} {said.replace('{scp!r}', repr(str(scp)))}"


def test_mistakes_of_labels_and_lists_are_named(lists):
    path = lists.write("wav.scp", "")
    assert "is empty" in lists.refused(path)
    path.write_text(SCP)
    labels = lists.write("utt2label", "rec1\n")
    assert lists.refused(path) == f"line 1 of {str(labels)!r} has no label: 'rec1'"
