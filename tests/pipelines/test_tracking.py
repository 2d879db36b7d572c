"""MLflow is never in the way: what it does not get now it gets later, and nobody reads its password."""

import dataclasses
import json
import shutil
import socket
import sys
import threading
import types
from pathlib import Path

import mlflow
import pytest
from helpers.faults import PATIENCE, wait_for
from helpers.mlflow_server import mlflow_wire, server  # noqa: F401  (fixtures)
from helpers.runs import tiny_config

from ajepa.errors import UserError
from ajepa.training.run_folder import append_history, read_lines
from pipelines import pretrain
from pipelines.cli.command import run_command
from pipelines.tracking import mlflow_run, mlflow_sender
from pipelines.tracking.mlflow_uri import shown, tracking_uri, without_password

pytestmark = pytest.mark.process
ABOUT = {"params": {"lr": 0.1}, "tags": {"ajepa.job": "test"}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mlflow_sender, "PATIENCE", 120.0)
    monkeypatch.setattr(mlflow_sender, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(mlflow_sender, "LONGEST_WAIT", 0.2)


def uri(wire):
    return f"http://127.0.0.1:{wire.port}"


def found_runs(address, name):
    client = mlflow.MlflowClient(address)
    ids = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(ids, f"attributes.run_name = '{name}'")


def losses(address, tracker):
    return mlflow.MlflowClient(address).get_metric_history(tracker.run_id, "loss/loss")


def record(tracker, folder):
    (folder / "a.txt").write_text("a file")
    tracker.log_metrics(3, {"score": 0.5})
    tracker.log_text("a text", "text.txt")
    tracker.log_file(folder / "a.txt", "files")
    (folder / "a.txt").unlink()
    tracker.log_input("s3://sounds/list.csv", "abc123", "source", {"clips": 7})
    tracker.describe("**all is well**")


def assert_complete(wire, name):
    (run,) = found_runs(wire.database, name)
    assert (run.data.metrics, run.data.params, run.info.status) == ({"other/score": 0.5}, {"lr": "0.1"}, "FINISHED")
    (source,) = run.inputs.dataset_inputs
    assert (source.dataset.name, source.dataset.digest, source.tags[0].value) == ("list.csv", "abc123", "source")
    assert run.data.tags["mlflow.note.content"].startswith("**all is well**\n\n")
    assert run.data.tags["mlflow.source.name"] == "pipelines/test.py" and run.data.tags["mlflow.source.type"] == "LOCAL"
    artifacts = next(wire.artifacts.glob(f"*/{run.info.run_id}/artifacts"))
    assert (artifacts / "text.txt").read_text() == "a text" and (artifacts / "files/a.txt").read_text() == "a file"


def test_a_server_that_is_away_is_told_later(mlflow_wire, tmp_path, capsys):  # noqa: F811
    mlflow_wire.break_now()
    output = str(tmp_path / "out")
    Path(output).mkdir()
    tracker = mlflow_run.start_run(uri(mlflow_wire), "later", output=output, **ABOUT)
    with tracker.recording():
        record(tracker, tmp_path)
    assert tracker.run_id == ""
    said = capsys.readouterr().err
    assert said.count("cannot record to MLflow") == 1 and "did not get 5 records" in said
    mlflow_wire.mend()
    assert not found_runs(mlflow_wire.database, "later")
    mlflow_run.send_unsent(output, uri(mlflow_wire))
    assert_complete(mlflow_wire, "later")
    assert list(Path(output).iterdir()) == []


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "another type": lambda _: "[]",
    "no records": lambda text: text.replace('"records"', '"other"'),
    "an unknown field of the run": lambda text: text.replace('"run_id"', '"other"'),
    "a file elsewhere": lambda text: text.replace('"file": "', '"file": "../../'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_records_are_left_out_and_named(name, mlflow_wire, tmp_path, capsys):  # noqa: F811
    mlflow_wire.break_now()
    output = tmp_path / "out"
    first, second = f"first, {name}", f"second, {name}"
    for run in (first, second):
        with (tracker := mlflow_run.start_run(uri(mlflow_wire), run, output=str(output), **ABOUT)).recording():
            record(tracker, tmp_path)
    kept = sorted(output.glob("mlflow-unsent/*/run.json"))
    (damaged,) = [path for path in kept if json.loads(path.read_text())["run"]["name"] == first]
    damaged.write_text(DAMAGES[name](damaged.read_text()))
    capsys.readouterr()
    mlflow_wire.mend()
    mlflow_run.send_unsent(str(output), uri(mlflow_wire))
    assert_complete(mlflow_wire, second)
    assert f"warning: records for MLflow are not sent: {str(damaged)!r} is damaged" in capsys.readouterr().err
    assert damaged.exists() and not found_runs(mlflow_wire.database, first)


def test_still_away_nothing_is_lost(mlflow_wire, tmp_path):  # noqa: F811
    mlflow_wire.break_now()
    output = str(tmp_path / "out")
    with (tracker := mlflow_run.start_run(uri(mlflow_wire), "again", output=output, **ABOUT)).recording():
        record(tracker, tmp_path)
    mlflow_run.send_unsent(output, uri(mlflow_wire))
    mlflow_wire.mend()
    with mlflow_run.start_run(uri(mlflow_wire), "another", output=output, **ABOUT).recording():
        pass  # the next command on the output
    assert_complete(mlflow_wire, "again")
    assert len(found_runs(mlflow_wire.database, "another")) == 1 and list(Path(output).iterdir()) == []


def test_a_break_in_the_middle_is_caught_up(mlflow_wire, tmp_path, capsys):  # noqa: F811
    output, said = str(tmp_path), []
    tracker = mlflow_run.start_run(uri(mlflow_wire), "break", output=output, histories=True, **ABOUT)
    with tracker.recording():
        for step in range(1, 10):
            if step == 3:
                wait_for(lambda: len(losses(mlflow_wire.database, tracker)) == 2, "the first two reports in MLflow")
                mlflow_wire.break_now()
            if step == 6:
                wait_for(lambda: said.append(capsys.readouterr().err) or "cannot record" in "".join(said), "a warning")
                assert "".join(said).count("warning") == 1
                mlflow_wire.mend()
            append_history(output, [{"step": step, "total_steps": 9, "loss": 1 / step, "time": 1e9 + step}])
    history = losses(mlflow_wire.database, tracker)
    assert [(m.step, m.value, m.timestamp) for m in history] == [(s, 1 / s, 1e12 + 1000 * s) for s in range(1, 10)]
    assert "answers again" in capsys.readouterr().err


def test_a_server_that_does_not_answer_holds_nobody_up(tmp_path, monkeypatch):
    """It takes connections, and no more."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = mlflow_run.start_run(address, "silent", output=str(tmp_path), **ABOUT)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(2 * PATIENCE))  # whoever waits for it hangs from now on
        monkeypatch.setattr(mlflow_sender, "PATIENCE", 0.0)
        with tracker.recording():
            for step in range(1000):
                tracker.log_metrics(step, {"loss": 1.0})
            assert (len(tracker._sender.records), tracker._sender.progress, tracker.run_id) == (1000, 0, "")
    (kept,) = tmp_path.glob("mlflow-unsent/*/run.json")
    assert len(json.loads(kept.read_text())["records"]) == 1000


def test_a_database_server_that_is_down_is_asked_before_mlflow_is(tmp_path, monkeypatch, capsys):
    """MLflow tries for more than a minute."""

    def asked(uri):
        raise AssertionError("MLflow is asked")

    monkeypatch.setitem(sys.modules, "psycopg2", types.ModuleType("psycopg2"))  # the driver, of which nothing is used
    monkeypatch.setattr(mlflow, "MlflowClient", asked)
    with socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # a port that is taken and refuses
        address = f"postgresql+psycopg2://user:hunter2secret@127.0.0.1:{down.getsockname()[1]}/x"
        mlflow_run.require_store(address)
        with mlflow_run.start_run(address, "down", output=str(tmp_path), **ABOUT).recording():
            pass
    said = capsys.readouterr().err
    assert said.count("cannot record to MLflow") == 1 and "refused" in said and "hunter2secret" not in said
    assert len(list(tmp_path.glob("mlflow-unsent/*/run.json"))) == 1


def test_a_database_that_nothing_here_speaks_to_is_refused(tmp_path):
    address = "mysql+nothing://127.0.0.1:1/x"
    with pytest.raises(UserError, match="cannot record to MLflow at"):
        mlflow_run.require_store(address)
    with pytest.raises(UserError, match="cannot record to MLflow at"):
        mlflow_run.start_run(address, "x", output=str(tmp_path), **ABOUT)


@pytest.mark.parametrize("away", [True, False])
def test_pretraining_does_not_need_it(mlflow_wire, small_dataset, tmp_path, capsys, away):  # noqa: F811
    if away:
        mlflow_wire.break_now()
    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=str(tmp_path / "run"), num_workers=0, threads=1, figures=False,
        mlflow_uri=uri(mlflow_wire), config=tiny_config(seed=5 + away),
    )  # fmt: skip
    run_command(lambda: pretrain.main(args))
    steps = [line["step"] for line in read_lines(str(tmp_path / "run/history.jsonl")) if "loss" in line]
    assert steps[-1] == 6
    mlflow_wire.mend()
    run_command(lambda: pretrain.main(args))
    assert "nothing to do" in capsys.readouterr().out
    runs = found_runs(mlflow_wire.database, "pretrain nano")
    (run,) = (run for run in runs if run.data.params["train.seed"] == str(5 + away))
    assert run.info.status == "FINISHED" and run.data.tags["ajepa.verdict"]
    history = mlflow.MlflowClient(mlflow_wire.database).get_metric_history(run.info.run_id, "loss/loss")
    assert [m.step for m in history] == steps


@pytest.mark.parametrize("moved", [True, False])
def test_a_run_that_vanished_is_begun_anew(small_dataset, tmp_path, new_mlflow, capsys, moved):
    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=str(tmp_path / "run"), num_workers=0, threads=1, figures=False,
        mlflow_uri=new_mlflow(tmp_path), config=tiny_config(),
    )  # fmt: skip
    pretrain.main(args)
    about = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(about | {"finished": False}))
    shutil.rmtree(max((tmp_path / "run/checkpoints").iterdir()))
    if moved:
        (tmp_path / "other").mkdir()
        args = dataclasses.replace(args, mlflow_uri=new_mlflow(tmp_path / "other"))
    else:
        mlflow.MlflowClient(args.mlflow_uri).delete_run(about["mlflow_run"])
    pretrain.main(args if moved else dataclasses.replace(args, mlflow_uri=None))
    said = capsys.readouterr().err
    assert said.count(f"has no run {about['mlflow_run']} any more: a new one is started") == 1
    (run,) = found_runs(args.mlflow_uri, "pretrain nano")
    assert json.loads((tmp_path / "run/run.json").read_text())["mlflow_run"] == run.info.run_id
    losses = mlflow.MlflowClient(args.mlflow_uri).get_metric_history(run.info.run_id, "loss/loss")
    assert {m.step for m in losses} >= {2, 4, 6} and run.info.status == "FINISHED"


def test_no_password_is_printed_or_stored(mlflow_wire, small_dataset, tmp_path, capfd):  # noqa: F811
    mlflow_wire.break_now()
    address = f"http://user:hunter2secret@127.0.0.1:{mlflow_wire.port}"
    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=str(tmp_path / "run"), num_workers=0, threads=1, figures=False,
        mlflow_uri=address, config=tiny_config(),
    )  # fmt: skip
    run_command(lambda: pretrain.main(args))
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert f"http://user@127.0.0.1:{mlflow_wire.port}".encode() in written
    assert b"hunter2secret" not in written and "hunter2secret" not in "".join(capfd.readouterr())


def test_a_record_that_is_refused_stops_no_other(mlflow_uri, tmp_path, capsys):
    tracker = mlflow_run.start_run(mlflow_uri, "refused", output=str(tmp_path), **ABOUT)
    with tracker.recording():
        tracker.log_metrics(1, {"what?": 1.0})
        tracker.log_metrics(1, {"good": 2.0})
    assert capsys.readouterr().err.count("MLflow refuses a record (metrics)") == 1
    (run,) = found_runs(mlflow_uri, "refused")
    assert run.data.metrics == {"other/good": 2.0}


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, MemoryError])
def test_a_run_never_stays_running(mlflow_uri, tmp_path, error):
    tracker = mlflow_run.start_run(mlflow_uri, "ended", output=str(tmp_path), **ABOUT)
    with pytest.raises(error), tracker.recording():
        raise error
    (run,) = found_runs(mlflow_uri, "ended")
    assert run.info.status == ("KILLED" if error is KeyboardInterrupt else "FAILED")
    assert threading.active_count() < 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("file:///tmp/mlruns", "records to no file:// store"),
        ("mlruns", "is no URI"),
        ("sqlite:///no/such/folder/mlflow.db", "no database can be at"),
        ("sqlite:///", "no database can be at"),
        ("s3://bucket/x", "records to no s3:// store"),
    ],
)
def test_an_address_that_can_never_work_is_refused(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        tracking_uri(given, "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    with pytest.raises(UserError, match="cannot record to MLflow"):
        mlflow_run.start_run(f"sqlite:///{tmp_path}/mlflow.db", "x", output=str(tmp_path), **ABOUT)


def test_a_relative_database_lies_in_this_folder(migrated_mlflow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(migrated_mlflow, tmp_path / "mlflow.db")
    address = tracking_uri("sqlite:///mlflow.db", "out")
    assert address == f"sqlite:///{tmp_path}/mlflow.db"
    with (tracker := mlflow_run.start_run(address, "x", output="out", **ABOUT)).recording():
        tracker.log_text("a", "a.txt")
    assert len(list((tmp_path / "mlartifacts").rglob("a.txt"))) == 1


@pytest.mark.parametrize(
    ("full", "safe"),
    [
        ("http://u:p%40ss@host:5000/x", "http://u@host:5000/x"),
        ("postgresql+psycopg2://u:pass@host/db?password=other&sslmode=require", "postgresql+psycopg2://u@host/db?sslmode=require"),
        ("https://s3cr3tt0ken@host/x", "https://host/x"),
        ("http://s3cr3tt0ken:@host/x", "http://host/x"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("databricks", "databricks"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_what_is_secret(full, safe):
    assert shown(full) == safe
    text = without_password(f"cannot reach {full}", full)
    assert all(secret not in text for secret in ("p%40ss", "pass@", "=other", "s3cr3tt0ken"))
