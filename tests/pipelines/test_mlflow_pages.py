"""What MLflow's pages show of a run: its kind of experiment, data, source, groups of metrics and description."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from helpers.training_state import make_inputs, make_state
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, PERMISSION_DENIED

from ajepa.evaluation.comparison import MEL
from ajepa.objectives.registry import OBJECTIVES
from ajepa.training.diagnostics import PAGE
from ajepa.training.run_folder import read_history
from ajepa.training.step import train_step
from pipelines.jobs import pretrain, probe
from pipelines.probe import ProbeArgs
from pipelines.tracking import mlflow_run
from pipelines.tracking.metric_groups import FAMILIES, GROUPS, OTHER, group_of, grouped
from pipelines.tracking.mlflow_calls import MOST_NOTE, RunGoneError, set_note
from pipelines.tracking.mlflow_sender import NO_METRICS
from pipelines.tracking.outcomes import verdict_parts
from pipelines.tracking.source import command_line, commit_of, this_source

KIND, MACHINE_LEARNING, NOTE = "mlflow.experimentKind", "custom_model_development", "mlflow.note.content"
pytestmark = pytest.mark.process


def recorded(uri, output, **more):
    """A run that is recorded, as it then is in MLflow."""
    with (tracker := mlflow_run.start_run(uri, "x", output=str(output), params={}, tags={}, **more)).recording():
        pass
    return mlflow.MlflowClient(uri).get_run(tracker.run_id)


def kind(uri):
    return mlflow.MlflowClient(uri).get_experiment_by_name("ajepa").tags.get(KIND)


def test_a_new_experiment_is_one_of_model_training(mlflow_uri, tmp_path):
    recorded(mlflow_uri, tmp_path / "out")
    assert kind(mlflow_uri) == MACHINE_LEARNING


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, MACHINE_LEARNING),
        ("genai_development_inferred", MACHINE_LEARNING),
        ("genai_development", "genai_development"),
        ("finetuning", "finetuning"),
    ],
)
def test_a_kind_that_somebody_chose_stays(mlflow_uri, tmp_path, before, after):
    mlflow.MlflowClient(mlflow_uri).create_experiment("ajepa", tags={KIND: before} if before else {})
    recorded(mlflow_uri, tmp_path / "out")
    assert kind(mlflow_uri) == after


@pytest.mark.parametrize(
    ("method", "code"), [("set_experiment_tag", PERMISSION_DENIED), ("log_inputs", ENDPOINT_NOT_FOUND)]
)
def test_a_server_that_takes_less_costs_a_warning(mlflow_uri, tmp_path, monkeypatch, capsys, method, code):
    """One of an older version, or one that asks for a permission."""
    mlflow.MlflowClient(mlflow_uri).create_experiment("ajepa")

    def refused(*_, **__):
        raise mlflow.MlflowException("not here, or not for you", code)

    monkeypatch.setattr(mlflow.MlflowClient, method, refused)
    tracker = mlflow_run.start_run(mlflow_uri, "x", output=str(tmp_path / "out"), params={}, tags={})
    with tracker.recording():
        tracker.log_input("s3://sounds/list.csv", "abc", "source", {})
        tracker.log_metrics(1, {"loss": 2.0})
    run = mlflow.MlflowClient(mlflow_uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss/loss": 2.0}
    assert capsys.readouterr().err.count("warning") == 1


def test_each_metric_is_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names)
    assert not [name for name in names for start in FAMILIES if name.startswith(start)]
    assert grouped("loss") == "loss/loss" and grouped("lr", part="seed-0-fold-1/") == "optimizer/lr seed-0-fold-1"
    assert grouped("something new") == "other/something new" and grouped("d_prime", "probe") == "probe/d_prime"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_objective_reports_has_a_group(name):
    state = make_state(objective=name)
    result = train_step(state, make_inputs(state), metrics=True)
    assert [metric for metric in result.metrics if group_of(metric) == OTHER] == []


def test_a_pretraining_is_recorded_by_group_with_its_data_verdict_and_source(finished_run, small_dataset):
    client = mlflow.MlflowClient(finished_run.mlflow_uri)
    history = read_history(finished_run.output)
    run = client.get_run(json.loads(Path(finished_run.output, "run.json").read_text())["mlflow_run"])
    plain = {name for report in history for name in report} - set(NO_METRICS)
    assert run.data.metrics.keys() == {grouped(name) for name in plain} and not any("/" in name for name in plain)
    groups = {name.partition("/")[0] for name in run.data.metrics}
    assert groups >= {"loss", "representation", "optimizer", "throughput"} and OTHER not in groups
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.digest, data.tags[0].value) == (small_dataset.content_hash, "training")
    assert json.loads(data.dataset.source) == {"uri": small_dataset.path}
    assert json.loads(data.dataset.profile)["clips"] == small_dataset.num_clips
    assert "log_mel" in {column["name"] for column in json.loads(data.dataset.schema)["mlflow_colspec"]}
    state, _ = verdict_parts(history[-1]["verdict"])
    assert run.data.tags[NOTE].startswith(f"**{state}**, step 6 of 6")
    assert run.data.tags["ajepa.version"] in run.data.tags[NOTE]
    assert run.data.tags["mlflow.source.name"] == "pipelines/pretrain.py"


def test_a_probe_shows_its_scores(finished_run, small_dataset, tmp_path):
    args = ProbeArgs(
        encoder=(finished_run.output,), data=small_dataset.path, protocol="knn", seeds=1, threads=1, figures=False,
        cache=str(tmp_path / "cache"), output=str(tmp_path / "probe"), mlflow_uri=finished_run.mlflow_uri,
    )  # fmt: skip
    rows = probe.main(args)
    client = mlflow.MlflowClient(finished_run.mlflow_uri)
    (run,) = client.search_runs(["1"], f"tags.`ajepa.output` LIKE '%:{args.output}'")
    best = probe.choose_row(rows)
    assert run.data.tags[NOTE].startswith(f"**accuracy {best.mean:.3f} with {best.pooling} pooling")
    assert f"| {MEL} |" in run.data.tags[NOTE]
    assert {name.partition("/")[0] for name in run.data.metrics} == {"probe"}
    assert [data.tags[0].value for data in run.inputs.dataset_inputs] == ["evaluation"]


def test_a_training_that_is_stopped_says_how_far_it_came(finished_run, tmp_path, monkeypatch):
    def stopped(job, output, workers, callbacks):
        callbacks[0].after_report(None, [{"step": 2, "total_steps": 6, "share": 1.0, "loss": 1.5,
                                          "verdict": f"rank 3 of 32: collapsing; {PAGE}"}], None)  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "fit", stopped)
    args = dataclasses.replace(finished_run, output=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(dataclasses.replace(args), quiet=True)
    client = mlflow.MlflowClient(args.mlflow_uri)
    (run,) = client.search_runs(["1"], f"tags.`ajepa.output` LIKE '%:{args.output}'")
    assert run.info.status == "KILLED"
    assert run.data.tags[NOTE].startswith("**collapsing**, step 2 of 6: rank 3 of 32\n")


def test_a_description_that_somebody_changed_stays(mlflow_uri, tmp_path):
    run = recorded(mlflow_uri, tmp_path / "out")
    client = mlflow.MlflowClient(mlflow_uri)
    set_note(client, run.info.run_id, "ours " * 2000)
    assert len(client.get_run(run.info.run_id).data.tags[NOTE]) == MOST_NOTE
    set_note(client, run.info.run_id, "ours, newer")
    client.set_tag(run.info.run_id, NOTE, "theirs")
    set_note(client, run.info.run_id, "ours, newest")
    assert client.get_run(run.info.run_id).data.tags[NOTE] == "theirs"
    client.delete_run(run.info.run_id)
    with pytest.raises(RunGoneError):
        set_note(client, "0" * 32, "of a run that is gone")


@pytest.mark.parametrize(
    ("argument", "safe"),
    [
        ("--lr", "--lr"),
        ("a b", "'a b'"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("http://user:hunter2@host:5000/x", "http://user@host:5000/x"),
        ("--mlflow-uri=https://hunter2@host/", "--mlflow-uri=https://host/"),
        ("--mlflow-uri=postgresql://u:hunter2@host/db?password=hunter2", "--mlflow-uri=postgresql://u@host/db"),
        ("s3://a:hunter2@b/x,s3://c:hunter2@d/y", "s3://a@b/x,s3://c@d/y"),
        ("http://[hunter2", "'***'"),
    ],
)
def test_a_command_is_shown_without_what_is_secret(argument, safe):
    assert command_line([argument]) == safe


def test_parameters_and_data_are_shown_without_what_is_secret(mlflow_uri, tmp_path):
    params = {"data": "s3://key:hunter2@bucket/shards"}
    tracker = mlflow_run.start_run(mlflow_uri, "x", output=str(tmp_path / "out"), params=params, tags={})
    with tracker.recording():
        tracker.log_input(params["data"], "abc", "training", {})
    run = mlflow.MlflowClient(mlflow_uri).get_run(tracker.run_id)
    assert run.data.params == {"data": "s3://key@bucket/shards"}
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.source_type, json.loads(data.dataset.source)) == ("s3", {"uri": "s3://key@bucket/shards"})


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_the_commit_is_that_of_a_checkout_alone(tmp_path, monkeypatch):
    assert commit_of(tmp_path) == (None, False)
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == (None, False)  # no commit yet
    (tmp_path / "a.py").write_text("a")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a hook
    assert commit_of(tmp_path) == (head, False)
    (tmp_path / "a.py").write_text("b")
    assert commit_of(tmp_path) == (head, True)
    (tmp_path / "inside").mkdir()
    assert commit_of(tmp_path / "inside") == (None, False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit_of(tmp_path) == (None, False)


def test_the_source_is_the_command(monkeypatch):
    root = Path(mlflow_run.__file__).parents[2]
    monkeypatch.setattr(sys, "argv", [str(root / "pipelines/pretrain.py"), "--data", "a b", "--output", "run"])
    this_source.cache_clear()
    source = this_source()
    this_source.cache_clear()
    assert source.command == "python pipelines/pretrain.py --data 'a b' --output run"
    assert source.tags("other")["mlflow.source.name"] == "pipelines/pretrain.py"
    tags = dataclasses.replace(source, commit="abc", changed=True).tags("x")
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("abc", "true")
    assert "mlflow.source.git.commit" not in dataclasses.replace(source, commit=None).tags("x")
