"""The end report: figures, failures by kind, pictures, and names that break Markdown or matplotlib."""

import warnings

import matplotlib.image
import numpy as np
import pyarrow as pa
import pytest

from ajepa.config import FrontEndConfig
from pipelines.reports.preprocess_report import SOUNDS, choose_rows, failure_kinds, kind_of, write_report

pytestmark = pytest.mark.xdist_group("figures")  # Matplotlib is imported once

FILES = ["report.md", "durations.png", "sample_rates.png", "bins.png", "log_mels.png"]
FRONT_END = FrontEndConfig(clip_frames=64)


def tone(rate=16_000, seconds=0.5):
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)


def figures(folder):
    """The first table of a report as a dict."""
    text = (folder / "report.md").read_text(encoding="utf-8")
    lines = text.split("## Failures")[0].splitlines()
    return dict(line.strip("| ").split(" | ") for line in lines if line.startswith("| "))


def check_pictures(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    for name in FILES[1:]:
        picture = matplotlib.image.imread(folder / name)
        assert picture.shape[0] > 250 and picture.shape[1] > 400, name
        colours = (picture[..., :3] * 255).round().astype(np.int64) @ (1, 256, 65_536)
        assert len(np.unique(colours)) > 20, name
        assert f"]({name})\n\n" in text  # and a caption


@pytest.fixture(scope="module")
def troubled(tmp_path_factory, build_dataset, write_wav):
    """6 good clips at 8 and 16 kHz and 7 bad ones of three kinds, with awkward names."""
    root = tmp_path_factory.mktemp("troubled")
    clips = []
    for i, name in enumerate(["a|b\nc $x_ 鳥_", "$\\frac{", "long " * 60, "*bold* <b>", "__init__", "plain"]):
        uri = write_wav(root / f"good{i}.wav", tone(*((8_000, 0.5), (16_000, 0.9))[i % 2]), (8_000, 16_000)[i % 2])
        clips.append({"clip_id": name, "uri": uri, "split": ("train", "test")[i // 4], "labels": [i - 3] * (i > 2)})
    for i in range(4):
        wave = tone()
        wave[: 3 + i] = np.nan
        uri = write_wav(root / f"nan {i}.wav", wave, subtype="FLOAT")
        clips.append({"clip_id": f"nan|{i}\n$x_ 鳥", "uri": uri})
    clips += [{"clip_id": f"gone{i}", "uri": str(root / f"it's gone {i}.wav")} for i in range(2)]
    (root / "text.wav").write_text("not audio")
    clips.append({"clip_id": "text", "uri": str(root / "text.wav")})
    names = ["dog|cat\n", "cost: $5 and $\\frac{", "鳥の声 " * 30]
    return build_dataset(root / "shards", clips, shard_size=5, front_end=FRONT_END, label_names=names)


REMARKS = ["2 files | were *left* out", "and $x_ too"]


@pytest.fixture(scope="module")
def told_of_trouble(troubled, tmp_path_factory):
    """The report of it, which is written without a warning."""
    folder = tmp_path_factory.mktemp("report")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(troubled, folder, remarks=REMARKS, missing=3)
    return folder


def test_a_clean_dataset(small_dataset, tmp_path):
    paths = write_report(small_dataset, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == FILES and all(p.parent == tmp_path / "new" / "folder" for p in paths)
    check_pictures(paths[0].parent)
    told = figures(paths[0].parent)
    assert (told["clips ok"], told["clips bad"], told["share failed"]) == ("40", "0", "0.00%")
    assert (told["shards"], told["labels"], told["content hash"]) == ("2", "4, on 40 clips", small_dataset.content_hash)
    assert told["folds"] == "1: 8, 2: 8, 3: 8, 4: 8, 5: 8" and "splits" not in told
    cut = np.count_nonzero([0.3 + 2.6 * (i * 7 % 40) / 39 >= 2.56 for i in range(40)])
    assert told["clips that fill the clip length"] == str(cut) and 0 < cut < 40
    assert "(2.56 s)" in told["front end"]
    text = paths[0].read_text()
    assert "No clip failed." in text and "## Remarks" not in text


def test_failures_are_counted_by_kind_with_an_example(troubled, told_of_trouble):
    told = figures(told_of_trouble)
    assert (told["clips ok"], told["clips bad"], told["share failed"]) == ("6", "7", "53.85%")
    assert told["missing (listed by the source, no audio)"] == "3" and told["labels"] == "3, on 3 clips"
    assert told["splits"] == "test: 2, train: 4" and "folds" not in told
    kinds = failure_kinds(troubled)
    assert [count for count, _, _ in kinds.values()] == [4, 2, 1]
    kind, (_, clip_id, error) = next(iter(kinds.items()))
    assert kind.startswith("waveform: N of N samples are NaN")
    assert clip_id == "nan|0\n$x_ 鳥" and error.startswith("waveform: 3 of 8000 ")
    lines = (told_of_trouble / "report.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| waveform"))
    assert "| 4 | 57.1% | nan\\|0 \\$x\\_ 鳥 | waveform: 3 of 8000 samples are NaN" in row
    assert "- 2 files \\| were \\*left\\* out" in lines and "- and \\$x\\_ too" in lines


def test_awkward_names_are_drawn(told_of_trouble):
    check_pictures(told_of_trouble)


def test_one_clip(tmp_path, build_dataset, write_wav):
    uri = write_wav(tmp_path / "one.wav", tone())
    dataset = build_dataset(
        tmp_path / "shards", [{"clip_id": "one", "uri": uri}], shard_size=8, front_end=FRONT_END, label_names=[]
    )
    write_report(dataset, tmp_path)
    check_pictures(tmp_path)
    assert figures(tmp_path)["clips ok"] == "1" and figures(tmp_path)["labels"] == "0, on 0 clips"


def test_a_report_is_the_same_twice(troubled, told_of_trouble, tmp_path):
    again = write_report(troubled, tmp_path, remarks=REMARKS, missing=3)
    assert [p.read_bytes() for p in again] == [(told_of_trouble / p.name).read_bytes() for p in again]


@pytest.mark.parametrize(
    ("error", "uri", "kind"),
    [
        ("waveform: 12 of 300 samples are beyond 1e+12", "", "waveform: N of N samples are beyond N"),
        ("decode: no samples at -2.5 s", "", "decode: no samples at N s"),
        ("decode: bad MP3 header 0x7fE0 at 3", "", "decode: bad MP3 header N at N"),
        ("read: cannot open /data/my clips/7.wav: gone", "/data/my clips/7.wav", "read: cannot open PATH: gone"),
        ("read: I/O error on s3://b/key-9.wav.", "", "read: I/O error on PATH."),
        ("read: can't open 'it is 4.wav', \"x\"", "", "read: can't open '...', '...'"),
        ("read: [Errno 2] of /a/b.wav\nat 5", "", "read: [Errno 2] of PATH at N"),
        ("read: HTTP status 404 after 3 tries", "", "read: HTTP status 404 after N tries"),
    ],
)
def test_what_is_particular_to_a_clip_leaves_its_kind(error, uri, kind):
    assert kind_of(error, uri) == kind


def test_rows_are_spread_and_prefer_new_labels():
    labels = pa.chunked_array([pa.array([[i % 24 // 2] for i in range(240)])])
    rows = choose_rows(labels)
    assert len(rows) == SOUNDS and rows == sorted(rows)
    assert all(20 * i <= row < 20 * (i + 1) for i, row in enumerate(rows))
    assert len({labels[row].as_py()[0] for row in rows}) >= 10
    assert choose_rows(labels.slice(0, 3)) == [0, 1, 2]
