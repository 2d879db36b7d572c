"""Clips to parts of predictions, their CSV, and how they agree with the labels of the clips."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from helpers.classifiers import save_classifier

import ajepa
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.errors import UserError
from ajepa.evaluation.metrics import multi_label_scores
from ajepa.finetuning.predictions import (
    MAX_VALUES,
    Predictions,
    agreement,
    finish_predictions,
    open_predictions,
    require_csv,
    write_csv,
)
from ajepa.finetuning.predictor import Predictor, PredictSettings, prediction_schema
from ajepa.inference.part_writer import part_path
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.schema import BAD, OK

NAMES = ("rain", "siren", "wind")


@pytest.fixture(scope="module", params=[False, True], ids=["one label", "several"])
def classifier(request, small_dataset, tmp_path_factory):
    return ajepa.load_classifier(save_classifier(tmp_path_factory.mktemp("model"), small_dataset, NAMES, request.param))


def manifest(small_dataset) -> pa.Table:
    """The waveforms behind the first shard."""
    waves = sorted(Path(small_dataset.path).parent.glob("*.wav"))[:20]
    rows = [
        {
            "clip_id": w.stem,
            "uri": str(w),
            "start_s": 0.0,
            "duration_s": None,
            "split": "",
            "fold": -1,
            "labels": [i % 4],
        }
        for i, w in enumerate(waves)
    ]
    return pa.Table.from_pylist(rows, MANIFEST_SCHEMA)


def make_folders(output: Path) -> str:
    for status in (OK, BAD):
        (output / status).mkdir(parents=True)
    return str(output)


@pytest.mark.parametrize("level", ["clip", "window"])
def test_files_give_what_the_classifier_says(classifier, level, small_dataset, tmp_path):
    output = make_folders(tmp_path)
    predictor = Predictor(classifier, PredictSettings(level=level, hop=0.32 if level == "window" else None))
    predictor.write_files(manifest(small_dataset), 0, output)
    for row in pq.read_table(part_path(output, OK, 0), partitioning=None).to_pylist():
        wave, rate = soundfile.read(row["uri"])
        if level == "clip":
            wanted = classifier(wave, rate)
            values, ids = np.array([row["probabilities"]]), [row["predicted"]]
        else:
            found = classifier.windows(wave, rate, hop_s=0.32)
            wanted = found.probabilities[0]
            values, ids = np.array(row["probabilities"]), row["predicted"]
            np.testing.assert_allclose(row["time_s"], found.time_s[0], atol=1e-6)
        np.testing.assert_allclose(values, wanted, atol=1e-5)
        for probabilities, chosen in zip(values, ids, strict=True):
            above = np.flatnonzero(probabilities >= 0.5).tolist()
            assert chosen == (above if classifier.multi_label else [int(probabilities.argmax())])


def test_shards_give_what_files_give(classifier, small_dataset, tmp_path):
    """To what float16 leaves: log-mels of files are rounded, too."""
    output = make_folders(tmp_path)
    predictor = Predictor(classifier, PredictSettings())
    predictor.write_files(manifest(small_dataset), 0, output)
    predictor.write_shard(RowGroups(small_dataset), 0, str(make_folders(tmp_path / "shards")))
    files, shards = (
        pq.read_table(part_path(str(where), OK, 0), partitioning=None).sort_by("clip_id").to_pylist()
        for where in (tmp_path, tmp_path / "shards")
    )
    short = [i for i, row in enumerate(files) if row["duration_s"] < 2.5]  # a shard row holds 2.56 s
    assert len(short) > 10
    for i in short:
        assert files[i]["clip_id"] == shards[i]["clip_id"]
        np.testing.assert_allclose(files[i]["probabilities"], shards[i]["probabilities"], atol=2e-3)


def test_batches_change_nothing(classifier, small_dataset):
    log_mels = [torch.randn(128, n) for n in (3, 64, 200, 65, 17)]
    settings = PredictSettings(level="window", hop=0.16)
    together = Predictor(classifier, settings, batch_size=4).compute(log_mels)
    alone = Predictor(classifier, settings, batch_size=1)
    assert [len(values) for values in together] == [1, 1, 10, 2, 1]
    for values, log_mel in zip(together, log_mels, strict=True):
        np.testing.assert_allclose(values, alone.compute([log_mel])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("level", "hop", "message"),
    [("clip", 1.0, "--hop 1 is for --level window"), ("window", 5.0, "--hop: a hop of 5 s: windows are 0.64 s")],
)
def test_settings_that_make_no_sense_are_refused(classifier, level, hop, message):
    with pytest.raises(UserError, match=message):
        Predictor(classifier, PredictSettings(level=level, hop=hop))


def test_a_probability_that_is_not_finite_is_a_bad_row(small_dataset, tmp_path):
    broken = ajepa.load_classifier(save_classifier(tmp_path / "model", small_dataset, NAMES))
    broken.model.head.bias.fill_(torch.nan)
    output = make_folders(tmp_path / "out")
    result = Predictor(broken, PredictSettings()).write_files(manifest(small_dataset), 0, output)
    assert (result.ok, result.errors["model"]) == (0, 20)


def folder_of(
    output: Path, probabilities: list, labels: list[list[int]], *, several: bool, window: bool = False,
    label_names: tuple[str, ...] = NAMES,
) -> Predictions:  # fmt: skip
    """A finished folder of clips c0, c1, ... at 10 s of their files, 2 s long; windows of 1.5 s, 0.5 s apart."""
    make_folders(output)
    rows = [
        {
            "clip_id": f"c{i}", "uri": "/a.wav", "start_s": 10.0, "duration_s": 2.0, "split": "", "fold": -1,
            "labels": ids, "probabilities": p, "predicted": [], "time_s": [0.5 * k for k in range(len(p))],
        }
        for i, (p, ids) in enumerate(zip(probabilities, labels, strict=True))
    ]  # fmt: skip
    level = "window" if window else "clip"
    table = pa.Table.from_pylist(rows, prediction_schema(level, NAMES))
    pq.write_table(table, part_path(str(output), OK, 0), row_group_size=2)
    about = {"level": level, "model_labels": NAMES, "multi_label": several, "window_s": 1.5 if window else None}
    return finish_predictions(str(output), len(rows), about | {"model": {}, "label_names": list(label_names)})


CLIPS = [[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.2, 0.45, 0.35]]


def lines(predictions: Predictions, path: Path, **options) -> list[list[str]]:
    write_csv(predictions, str(path), **options)
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def test_a_csv_has_the_most_probable_label_of_each_clip(tmp_path):
    found = lines(folder_of(tmp_path / "out", CLIPS, [[]] * 3, several=False), tmp_path / "a.csv")
    assert found == [
        ["clip_id", "start_s", "end_s", "label", "probability"],
        ["c0", "10.000", "12.000", "rain", "0.700000"],
        ["c1", "10.000", "12.000", "wind", "0.600000"],
        ["c2", "10.000", "12.000", "siren", "0.450000"],
    ]


@pytest.mark.parametrize(
    ("several", "options", "wanted"),
    [
        (False, {"top": 2}, ["c0 rain", "c0 siren", "c1 wind", "c1 rain", "c2 siren", "c2 wind"]),
        (False, {"threshold": 0.5}, ["c0 rain", "c1 wind"]),
        (True, {}, ["c0 rain", "c1 wind"]),
        (True, {"threshold": 0.3}, ["c0 rain", "c1 wind", "c1 rain", "c2 siren", "c2 wind"]),
        (True, {"top": 1}, ["c0 rain", "c1 wind", "c2 siren"]),
        (True, {"top": 1, "threshold": 0.65}, ["c0 rain"]),
    ],
)
def test_which_labels_a_csv_has(tmp_path, several, options, wanted):
    found = lines(folder_of(tmp_path / "out", CLIPS, [[]] * 3, several=several), tmp_path / "a.csv", **options)
    assert [f"{row[0]} {row[3]}" for row in found[1:]] == wanted


def test_clips_without_a_line_are_counted(tmp_path):
    predictions = folder_of(tmp_path / "out", CLIPS, [[]] * 3, several=True)
    written = write_csv(predictions, str(tmp_path / "a.csv"), threshold=0.9)
    assert (written.lines, written.empty) == (0, 3)
    assert (tmp_path / "a.csv").read_text() == "clip_id,start_s,end_s,label,probability\n"


def test_windows_have_their_times_in_the_file(tmp_path):
    windows = [CLIPS, CLIPS[:1]]
    found = lines(folder_of(tmp_path / "out", windows, [[], []], several=False, window=True), tmp_path / "a.csv")
    assert [row[:4] for row in found[1:]] == [
        ["c0", "10.000", "11.500", "rain"],
        ["c0", "10.500", "12.000", "wind"],
        ["c0", "11.000", "12.000", "siren"],  # the clip ends there
        ["c1", "10.000", "11.500", "rain"],
    ]


def test_no_other_file_is_written_over(tmp_path):
    require_csv(str(tmp_path / "new.csv"))
    write_csv(folder_of(tmp_path / "out", CLIPS, [[]] * 3, several=False), str(tmp_path / "a.csv"))
    require_csv(str(tmp_path / "a.csv"))
    (tmp_path / "notes.csv").write_text("clip_id,comment\nc0,mine\n")
    with pytest.raises(UserError, match="is no CSV of predictions"):
        require_csv(str(tmp_path / "notes.csv"))
    with pytest.raises(UserError, match="is a folder"):
        require_csv(str(tmp_path))


def test_accuracy_is_measured_by_label_name(tmp_path):
    """The clips number their labels otherwise, and have one that the model has not."""
    names = ("wind", "cat", "rain")
    predictions = folder_of(tmp_path, [*CLIPS, CLIPS[0], CLIPS[0]], [[2], [0], [2], [1], []], several=False,
                            label_names=names)  # fmt: skip
    found = agreement(predictions)
    assert (found.metric, found.score, found.clips, found.left_out) == ("accuracy", pytest.approx(2 / 3), 3, 2)


def test_windows_of_a_clip_are_averaged(tmp_path):
    """Neither the first nor the last one decides."""
    rain, wind = CLIPS[:2]
    windows = [[wind, rain], [rain, wind, wind, wind], [wind, wind, wind, rain]]
    predictions = folder_of(tmp_path, windows, [[0], [2], [2]], several=False, window=True)
    assert agreement(predictions).score == 1


def test_average_precision_is_measured_where_clips_have_several_labels(tmp_path):
    labels = [[0, 1], [2], []]
    found = agreement(folder_of(tmp_path, CLIPS, labels, several=True))
    targets = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    wanted = multi_label_scores(np.array(CLIPS), targets).mean_average_precision
    assert (found.metric, found.clips, found.left_out) == ("mAP", 3, 0) and found.score == pytest.approx(wanted)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("names", [(), ("cat", "dog", "cow"), NAMES])
def test_nothing_is_measured_without_labels_in_common(tmp_path, several, names):
    labels = [[]] * 3 if names == NAMES or not names else [[0]] * 3
    assert agreement(folder_of(tmp_path, CLIPS, labels, several=several, label_names=names)) is None


def test_average_precision_of_too_many_clips_is_not_measured(tmp_path, monkeypatch):
    predictions = folder_of(tmp_path, CLIPS, [[0]] * 3, several=True)
    assert MAX_VALUES > 1e8 and agreement(predictions) is not None
    monkeypatch.setattr("ajepa.finetuning.predictions.MAX_VALUES", 8)
    assert agreement(predictions) is None


def test_a_damaged_description_is_named(tmp_path):
    folder_of(tmp_path, CLIPS, [[]] * 3, several=False)
    (tmp_path / "predictions.json").write_text('{"format_version": 1, "label_names": [], "parts": [], "counts": {}}')
    with pytest.raises(UserError, match=r"predictions\.json' is damaged \(no 'model'\)"):
        open_predictions(str(tmp_path))
