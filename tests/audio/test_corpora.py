"""Corpora in their authors' layouts: splits, labels, and what is missing counted and named."""

import shutil

import pytest

from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError

LABEL_TABLE = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/0bt9lr,"Dog"\n2,/t/dd00004,"Male, singing"\n'
SEGMENTS = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=6
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/0bt9lr"
Y0IyAb_-cde, 30.000, 40.000, "/m/0bt9lr"
bare_id_001, 20.000, 30.000, "/t/dd00004"
seconds_002, 5.500, 15.500, "/m/09x0r"
millis__003, 70.000, 80.000, "/m/09x0r"
gone____004, 0.000, 10.000, "/m/09x0r"
"""


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"sound")


@pytest.fixture
def audioset(tmp_path):
    (tmp_path / "class_labels_indices.csv").write_text(LABEL_TABLE)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "eval_segments.csv").write_text(SEGMENTS)
    fill(
        tmp_path, "audio/Y--4gqARaEJE.wav", "audio/Y0IyAb_-cde.flac", "audio/deep/er/bare_id_001.m4a",
        "audio/seconds_002_5.5_15.5.wav", "audio/Ymillis__003_70000_80000.opus", "audio/not-a-clip.wav",
    )  # fmt: skip
    return tmp_path


def rows(path, **options):
    manifest = load_manifest("audioset", str(path), **options)
    return {r["clip_id"]: r for r in manifest.clips.to_pylist()}, manifest


def test_audioset_finds_every_file_layout(audioset):
    clips, manifest = rows(audioset)
    assert {k: v["uri"].removeprefix(f"{audioset}/audio/") for k, v in clips.items()} == {
        "--4gqARaEJE_0": "Y--4gqARaEJE.wav",
        "Y0IyAb_-cde_30000": "Y0IyAb_-cde.flac",
        "bare_id_001_20000": "deep/er/bare_id_001.m4a",
        "seconds_002_5500": "seconds_002_5.5_15.5.wav",
        "millis__003_70000": "Ymillis__003_70000_80000.opus",
    }
    assert manifest.missing == ("gone____004_0",)


def test_audioset_labels_are_numbered_by_its_table(audioset):
    clips, manifest = rows(audioset)
    assert manifest.label_names == ["Speech", "Dog", "Male, singing"]
    assert clips["--4gqARaEJE_0"]["labels"] == [0, 1] and clips["bare_id_001_20000"]["labels"] == [2]
    assert {c["split"] for c in clips.values()} == {"eval"}


def test_audioset_cuts_whole_videos_at_the_segment(audioset):
    assert {c["start_s"] for c in rows(audioset)[0].values()} == {0.0}
    clips, _ = rows(audioset, whole_videos=True)
    assert (clips["Y0IyAb_-cde_30000"]["start_s"], clips["Y0IyAb_-cde_30000"]["duration_s"]) == (30.0, 10.0)


def test_audioset_reads_several_lists_as_splits(audioset):
    text = '--4gqARaEJE, 50.000, 60.000, "/m/09x0r"\n'
    (audioset / "lists" / "balanced_train_segments.csv").write_text(text)
    fill(audioset, "audio/--4gqARaEJE_50.wav")
    clips, _ = rows(audioset)
    assert clips["--4gqARaEJE_50000"]["split"] == "balanced_train"
    assert clips["--4gqARaEJE_50000"]["uri"].endswith("--4gqARaEJE_50.wav")
    assert clips["--4gqARaEJE_0"]["uri"].endswith("Y--4gqARaEJE.wav")


def test_audioset_counts_lines_it_cannot_read(audioset):
    with (audioset / "lists" / "eval_segments.csv").open("a") as file:
        file.write("not a segment\n")
    assert rows(audioset)[1].remarks == ("1 lines of the segment lists could not be read",)


def test_the_real_segment_list_is_read_whole(audioset_tables, tmp_path):
    shutil.copytree(audioset_tables, tmp_path / "a")
    lines = [x for x in (tmp_path / "a" / "eval_segments_head.csv").read_text().splitlines() if x[:1] != "#"]
    fill(tmp_path / "a", f"{lines[0][:11]}.wav")
    _, manifest = rows(tmp_path / "a")
    assert len(manifest.label_names) == 527 and manifest.remarks == ()
    assert manifest.clips.num_rows + len(manifest.missing) == len(lines)


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda p: (p / "lists" / "eval_segments.csv").unlink(), r"has no \*segments"),
        (lambda p: (p / "class_labels_indices.csv").unlink(), "needs one class_labels_indices.csv"),
        (lambda p: (p / "class_labels_indices.csv").write_text("a,b\n1,2\n"), "lacks the columns display_name"),
        (
            lambda p: (p / "class_labels_indices.csv").write_text(LABEL_TABLE[:40]),
            "label /m/0bt9lr of --4gqARaEJE is not",
        ),
        (lambda p: shutil.rmtree(p / "audio"), "audio of none of the 6 segments"),
    ],
)
def test_mistakes_in_an_audioset_copy_are_named(audioset, break_it, match):
    break_it(audioset)
    with pytest.raises(UserError, match=match):
        load_manifest("audioset", str(audioset))


@pytest.fixture
def commands(tmp_path):
    fill(tmp_path, "yes/a_nohash_0.wav", "yes/b_nohash_0.wav", "no/a_nohash_0.wav", "_background_noise_/hum.wav")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "validation_list.txt").write_text("yes/b_nohash_0.wav\nno/lost_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("no/a_nohash_0.wav\n")
    return tmp_path


def test_speech_commands_uses_its_own_lists_and_leaves_noise_out(commands):
    manifest = load_manifest("speech_commands", str(commands))
    assert manifest.label_names == ["no", "yes"]
    assert {r["clip_id"]: (r["split"], r["labels"]) for r in manifest.clips.to_pylist()} == {
        "yes/a_nohash_0.wav": ("train", [1]),
        "yes/b_nohash_0.wav": ("validation", [1]),
        "no/a_nohash_0.wav": ("test", [0]),
    }
    assert manifest.remarks == ("1 recordings of background noise left out",)
    assert manifest.missing == ("no/lost_nohash_0.wav",)


@pytest.mark.parametrize("corpus", ["commands", "audioset"])
def test_resource_forks_of_macos_are_no_part_of_a_corpus(corpus, request):
    folder = request.getfixturevalue(corpus)
    source = {"commands": "speech_commands"}.get(corpus, corpus)
    before = load_manifest(source, str(folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
        copy = folder / "__MACOSX" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"\0\5\x16\7")
    after = load_manifest(source, str(folder))
    assert after.clips.equals(before.clips) and after.label_names == before.label_names
    assert after.missing == before.missing
    (remark,) = set(after.remarks) - set(before.remarks)
    assert remark.startswith(f"{2 * len(files)} files of macOS beside the clips left out")


def test_a_folder_without_the_lists_is_no_speech_commands(commands):
    (commands / "testing_list.txt").unlink()
    with pytest.raises(UserError, match=r"no testing_list\.txt"):
        load_manifest("speech_commands", str(commands))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("class_labels_indices.csv", b"index,mid,display_name\nzero,/m/09x0r,Speech\n", "index that is no number"),
        ("class_labels_indices.csv", "index,mid,display_name\n0,/m/09x0r,Gerät\n".encode("latin-1"), "is not UTF-8"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_named(audioset, name, content, match):
    (path,) = audioset.rglob(name)
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        load_manifest("audioset", str(audioset))


def test_lists_that_are_not_utf_8_are_named(commands):
    (commands / "testing_list.txt").write_bytes("wort/grün.wav\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"testing_list.txt' is not UTF-8"):
        load_manifest("speech_commands", str(commands))
