"""What can be refused without the files is refused before they are listed and measured, which may take hours."""

from pathlib import Path

import pytest
import torch

from pipelines import ablate, embed, finetune, preprocess, pretrain
from pipelines.cli import lock
from pipelines.cli.command import run_command
from pipelines.jobs import ablate as ablate_job
from pipelines.jobs import finetune as finetune_job
from pipelines.jobs import parts as part_jobs
from pipelines.jobs import preprocess as preprocess_job
from pipelines.jobs import pretrain as pretrain_job


@pytest.fixture
def places(tmp_path):
    """Outputs and databases that are refused, by name."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    (tmp_path / "no.db").write_text("no database " * 100)
    (tmp_path / "taken").mkdir()
    lock._OwnLock(str(tmp_path / "taken")).acquire()  # by this process, which does not give it back
    return tmp_path


def listing(*_, **__):
    raise AssertionError("the files are listed")


REFUSALS = {
    "below a file": (["--output", "{}/file/x"], "cannot create --output"),
    "something else": (["--output", "{}/texts"], "exists and is no"),
    "something else to overwrite": (["--output", "{}/texts", "--overwrite"], "exists and is no"),
    "in use": (["--output", "{}/taken"], "is in use by process"),
    "no store": (["--output", "{}/a/new", "--mlflow-uri", "file:///tmp/mlruns"], "records to no file:// store"),
    "no database": (["--output", "{}/a/new", "--mlflow-uri", "sqlite:///{}/no.db"], "cannot record to MLflow at"),
}


@pytest.mark.parametrize("command", [preprocess, embed])
@pytest.mark.parametrize("name", REFUSALS)
def test_before_the_files_are_listed(name, command, encoder, sounds, places, monkeypatch, capsys):
    monkeypatch.chdir(places)
    monkeypatch.setattr(preprocess_job, "load_manifest", listing)
    monkeypatch.setattr(part_jobs, "load_manifest", listing)
    before = sorted(places.rglob("*"))
    options, message = REFUSALS[name]
    what = ["--source", "folder"] if command is preprocess else ["--encoder", str(encoder)]
    argv = [*what, "--input", str(sounds), *(text.format(places) for text in options)]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args(argv)))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize(("command", "option"), [(preprocess, "--clips-per-shard"), (embed, "--clips-per-part")])
def test_a_size_of_nothing_too(command, option, encoder, sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preprocess_job, "load_manifest", listing)
    monkeypatch.setattr(part_jobs, "load_manifest", listing)
    what = ["--source", "folder"] if command is preprocess else ["--encoder", str(encoder)]
    argv = [*what, "--input", str(sounds), "--output", str(tmp_path / "new"), option, "0"]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args(argv)))
    assert stop.value.code == 2 and f"{option} must be positive" in capsys.readouterr().err


def training(*_, **__):
    raise AssertionError("Ray is started")


@pytest.mark.parametrize("command", [pretrain, finetune, ablate])
def test_tracking_is_tried_before_ray_is_started(command, encoder, small_dataset, places, monkeypatch, capsys):
    for job in (pretrain_job, finetune_job):
        monkeypatch.setattr(job, "require_resources", training)
    monkeypatch.setattr(ablate_job, "start_ray", training)
    argv = ["--data", small_dataset.path, "--output", f"{places}/new", "--mlflow-uri", f"sqlite:///{places}/no.db"]
    argv = {pretrain: argv, finetune: ["--encoder", str(encoder), *argv], ablate: ["loss", *argv]}[command]
    before = sorted(places.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args(argv)))
    assert stop.value.code == 2 and "cannot record to MLflow at" in capsys.readouterr().err
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize("refusal", [["--mlflow-uri", "sqlite:///no.db"], ["--device", "cuda"]], ids=str)
@pytest.mark.parametrize("command", [pretrain, finetune])
def test_what_is_to_be_overwritten_stays_where_a_command_is_refused(
    command, refusal, encoder, small_dataset, places, monkeypatch, capsys
):
    monkeypatch.chdir(places)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    old = places / "old"
    old.mkdir()
    (old / {pretrain: "run.json", finetune: "finetune.json"}[command]).write_text("{}")
    argv = ["--data", small_dataset.path, "--output", str(old), "--overwrite", "--num-workers", "0", *refusal]
    if command is finetune:
        argv += ["--encoder", str(encoder)]
    before = sorted(old.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args(argv)))
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err
    assert sorted(old.rglob("*")) == before


def test_the_output_is_held_while_the_files_are_listed(sounds, tmp_path, mlflow_uri, monkeypatch):
    held = []

    def look(*_, **__):
        held.extend(lock.read_locks(str(tmp_path / "new")))
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess_job, "load_manifest", look)
    argv = [
        "--source", "folder", "--input", str(sounds), "--output", str(tmp_path / "new"), "--mlflow-uri", mlflow_uri,
    ]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        preprocess.main(preprocess.parse_args(argv))
    assert [seen.lock.state for seen in held] == [lock.HELD]
    assert not Path(tmp_path, "new").exists()


def test_a_dry_run_writes_nothing(sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--source", "folder", "--input", str(sounds), "--output", str(tmp_path / "new"), "--dry-run"]
    preprocess.main(preprocess.parse_args(argv))
    assert "20 clips" in capsys.readouterr().out and not list(tmp_path.iterdir())
