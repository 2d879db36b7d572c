"""The predict job on a real Ray: what the model says of every clip, resumable; as CSV; beside the clips' own labels."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers import containers
from helpers.classifiers import save_classifier
from helpers.faults import PATH, ROOT, Gate

import ajepa
from ajepa.errors import UserError
from ajepa.finetuning.predictions import open_predictions
from pipelines.jobs.predict import main
from pipelines.predict import PredictArgs

pytestmark = pytest.mark.ray
NAMES = ("tone", "noise", "wind")


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_dataset) -> str:
    notes = {"mlflow_run": "abc123", "finetune_run": "def456", "finetuned_on": "f1e7"}
    return save_classifier(tmp_path_factory.mktemp("model") / "model", small_dataset, NAMES, notes=notes)


def options(sounds: Path, model: str, folder: Path, mlflow_uri: str) -> PredictArgs:
    return PredictArgs(
        model=model, input=str(sounds), output=str(folder / "out"), labels_from_folders=True, clips_per_part=6,
        mlflow_uri=mlflow_uri, num_workers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(ray_session, sounds, model, tmp_path_factory, new_mlflow):
    """The options of a finished job with a CSV, and what it printed. For reading only."""
    folder = tmp_path_factory.mktemp("finished")
    args = options(sounds, model, folder, new_mlflow(folder))
    args = dataclasses.replace(args, csv=str(folder / "labels.csv"), num_workers=None)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(args)
    return args, said.getvalue()


def rows(output: str, status: str = "ok") -> list[dict]:
    files = sorted(Path(output, f"status={status}").glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


def test_a_folder_becomes_predictions(finished, model):
    args, said = finished
    predictions, classifier = open_predictions(args.output), ajepa.load_classifier(model)
    assert (predictions.num_clips, predictions.num_failed, len(predictions.parts)) == (20, 0, 4)
    assert predictions.model_labels == NAMES and predictions.label_names == ("noise", "tone")
    right = 0
    for row in rows(args.output):
        (wanted,) = classifier(*soundfile.read(row["uri"]))
        np.testing.assert_allclose(row["probabilities"], wanted, atol=1e-5)
        assert row["predicted"] == [int(wanted.argmax())]
        right += NAMES[row["predicted"][0]] == row["clip_id"].split("/")[0]
    assert f"labels of the input: accuracy {right / 20:.3f} on 20 clips\n" in said
    assert "20 clips ok, 0 bad, clip probabilities of 3 labels in 4 parts" in said
    run = mlflow.MlflowClient(args.mlflow_uri).get_run(predictions.info["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.metrics["data/clips_ok"] == 20
    assert run.data.metrics["test/labels_accuracy"] == pytest.approx(right / 20)
    tags = ("ajepa.job", "ajepa.pretrain_run", "ajepa.finetune_run")
    assert [run.data.tags[name] for name in tags] == ["predict", "abc123", "def456"]
    assert run.data.params["model_digest"] == classifier.digest == predictions.model["digest"]


def test_the_csv_says_what_the_parts_say(finished):
    args, said = finished
    with Path(args.csv).open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["clip_id"] for row in found] == [row["clip_id"] for row in rows(args.output)]
    for line, row in zip(found, rows(args.output), strict=True):
        assert line["label"] == NAMES[row["predicted"][0]]
        assert float(line["probability"]) == pytest.approx(max(row["probabilities"]), abs=1e-6)
        assert float(line["end_s"]) == pytest.approx(row["duration_s"], abs=1e-3)
    assert f"20 predictions in {args.csv}" in said


def test_another_csv_of_a_finished_folder_computes_nothing(finished, tmp_path, capsys):
    args, _ = finished
    before = {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}
    main(dataclasses.replace(args, csv=str(tmp_path / "two.csv"), top=2))
    assert "nothing to do" in capsys.readouterr().out
    assert len((tmp_path / "two.csv").read_text().splitlines()) == 41
    assert before == {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}


def test_another_model_or_level_into_the_same_output_is_refused(finished, small_dataset, tmp_path):
    args, _ = finished
    with pytest.raises(UserError, match=r"finished prediction job made from other .*level: clip -> window"):
        main(dataclasses.replace(args, level="window"))
    other = save_classifier(tmp_path / "model", small_dataset, NAMES, multi_label=True)
    with pytest.raises(UserError, match=r"finished prediction job made from other .*model_digest"):
        main(dataclasses.replace(args, model=other))


def test_windows_of_shards_by_a_model_of_several_labels(ray_session, small_dataset, tmp_path, mlflow_uri, capsys):
    model = save_classifier(tmp_path / "model", small_dataset, small_dataset.label_names, multi_label=True)
    args = PredictArgs(
        model=model, input=small_dataset.path, output=str(tmp_path / "out"), level="window", hop=0.32,
        mlflow_uri=mlflow_uri, num_workers=1,
    )  # fmt: skip
    predictions = main(args)
    assert (predictions.info["input"]["source"], predictions.num_clips) == ("shards", 40)
    assert (predictions.window_s, predictions.info["hop_s"]) == (0.64, 0.32)
    classifier = ajepa.load_classifier(model)
    for row in rows(args.output)[:3]:
        found = classifier.windows(*soundfile.read(row["uri"]), hop_s=0.32)
        np.testing.assert_allclose(row["time_s"], found.time_s[0], atol=1e-6)
        np.testing.assert_allclose(row["probabilities"], found.probabilities[0], atol=2e-3)  # float16 in shards
    said = capsys.readouterr().out
    run = mlflow.MlflowClient(mlflow_uri).get_run(predictions.info["mlflow_run"])
    assert f"labels of the input: mAP {run.data.metrics['test/labels_mAP']:.3f} on 40 clips" in said


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_sound_in_containers(ray_session, kind, small_dataset, tmp_path, mlflow_uri, capsys):
    clips = containers.sounds(9)
    if kind == "parquet":
        columns = {
            "id": [c.id for c in clips],
            "audio": containers.audio(clips),
            "labels": [c.labels[0] for c in clips],
        }
        path = containers.parquet(tmp_path / "in/0.parquet", columns, group=5)
    else:
        files = [(f"{c.id}.json", json.dumps({"label": c.labels[0]}).encode()) for c in clips]
        path = containers.tar(tmp_path / "in/0.tar", sorted([*files, *((f"{c.id}.flac", c.data) for c in clips)]))
    model = save_classifier(tmp_path / "model", small_dataset, ("dog", "cat"))
    args = PredictArgs(
        model=model, source=kind, input=path, output=str(tmp_path / "out"), clips_per_part=4, num_workers=1,
        mlflow_uri=mlflow_uri,
    )  # fmt: skip
    main(args)
    classifier = ajepa.load_classifier(model)
    wanted = {c.id: classifier(*soundfile.read(io.BytesIO(c.data)))[0] for c in clips}
    found = {row["clip_id"]: row["probabilities"] for row in rows(args.output)}
    assert found.keys() == wanted.keys()
    for name, probabilities in found.items():
        np.testing.assert_allclose(probabilities, wanted[name], atol=1e-5)
    right = np.mean([("dog", "cat")[int(wanted[c.id].argmax())] == c.labels[0] for c in clips])
    assert f"labels of the input: accuracy {right:.3f} on 9 clips" in capsys.readouterr().out


def test_bad_files_are_counted_with_their_reason(ray_session, model, tmp_path, mlflow_uri, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    soundfile.write(folder / "good.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not sound")
    args = dataclasses.replace(options(folder, model, tmp_path, mlflow_uri), labels_from_folders=False)
    predictions = main(args)
    assert {r["clip_id"] for r in rows(args.output, "bad")} == {"empty.wav", "text.wav"}
    assert (predictions.num_clips, predictions.num_failed) == (1, 2)
    said = capsys.readouterr().out
    assert "1 clips ok, 2 bad (2 decode; see status=bad)" in said and "labels of the input" not in said


@pytest.mark.process
@pytest.mark.cluster
def test_a_killed_job_goes_on_and_ends_the_same(ray_session, finished, sounds, tmp_path):
    finished_args, _ = finished
    (tmp_path / "in").mkdir()
    for path in sounds.iterdir():
        (tmp_path / "in" / path.name).mkdir()
        for file in path.iterdir():
            (tmp_path / "in" / path.name / file.name).hardlink_to(file)
    args = dataclasses.replace(finished_args, input=str(tmp_path / "in"), output=str(tmp_path / "out"), csv=None)
    gate = Gate(tmp_path / "in/tone/tone 3.wav")  # in the third part
    command = [
        sys.executable, "pipelines/predict.py", "--model", args.model, "--input", args.input, "--output", args.output,
        "--labels-from-folders", "--clips-per-part", "6", "--mlflow-uri", str(args.mlflow_uri), "--num-workers", "1",
    ]  # fmt: skip
    address = ray_session.get_runtime_context().gcs_address
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | PATH | {"RAY_ADDRESS": address}) as job:
        gate.wait(lambda: job.poll() is None)
        gate.open()
        job.send_signal(signal.SIGKILL)
    gate.wait_until_left()
    with pytest.raises(UserError, match="no prediction folder, or one that is not finished"):
        open_predictions(args.output)
    done = {p: p.stat().st_mtime_ns for p in Path(args.output).glob("status=ok/*.parquet")}
    assert 0 < len(done) < 4
    assert main(args).num_clips == 20
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    places = [{k: v for k, v in row.items() if k != "uri"} for row in rows(args.output)]
    assert places == [{k: v for k, v in row.items() if k != "uri"} for row in rows(finished_args.output)]


def test_a_model_that_changes_meanwhile_stops_the_job(ray_session, sounds, model, tmp_path, mlflow_uri, monkeypatch):
    from pipelines.jobs import parts

    started = parts.run_parts

    def with_another(clips, job, workers):
        settings = dataclasses.replace(job.actor_settings, digest="other")
        return started(clips, dataclasses.replace(job, actor_settings=settings), workers)

    monkeypatch.setattr(parts, "run_parts", with_another)
    args = options(sounds, model, tmp_path, mlflow_uri)
    with pytest.raises(UserError, match=r"stopped: the model .* changed while the job ran"):
        main(args)
    assert not rows(args.output) and json.loads(Path(args.output, "_plan/predict.json").read_text())["clips"] == 20
