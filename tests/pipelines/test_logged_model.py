"""The encoder as an MLflow model: loaded by a process elsewhere, which has only MLflow and what the model needs."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.faults import PATIENCE
from helpers.mlflow_server import mlflow_wire, server  # noqa: F401  (fixtures)
from helpers.training_state import save_run

from ajepa.errors import UserError
from ajepa.inference.pretrained import EXPORT_JSON, load_encoder
from pipelines.export import ExportArgs
from pipelines.jobs import export
from pipelines.tracking import mlflow_run, mlflow_sender
from pipelines.tracking.logged_model import log_encoder

USER = """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
waveforms = np.load("waveforms.npy")
np.savez("out.npz", own=model.predict(waveforms), other=model.predict(waveforms, params={"sample_rate": 8_000}))
import ajepa
print(ajepa.__file__)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset):
    folder = tmp_path_factory.mktemp("encoder") / "run"
    save_run(folder, small_dataset, 1)
    return folder


@dataclasses.dataclass
class Logged:
    """The run's encoder in MLflow."""

    model: str  # its URI there
    tracker: mlflow_run.Tracker
    kept: bool  # whether MLflow's settings in this process are those from before
    folder: Path  # of the database


@pytest.fixture(scope="module")
def logged(run, tmp_path_factory, new_mlflow):
    folder = tmp_path_factory.mktemp("logged")
    tracker = mlflow_run.start_run(new_mlflow(folder), "x", output=str(folder / "x"), params={}, tags={})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        before = mlflow.get_tracking_uri()
        with tracker.recording():
            model = log_encoder(tracker, str(run))
        kept = mlflow.get_tracking_uri() == before and "MLFLOW_TRACKING_URI" not in os.environ
    return Logged(model, tracker, kept, folder)


@pytest.mark.process
def test_the_logged_encoder_predicts_in_another_directory(run, logged, tmp_path):
    assert logged.tracker.client.get_run(logged.tracker.run_id).info.status == "FINISHED"
    waveforms = (0.1 * np.random.default_rng(0).standard_normal((3, 16_000))).astype(np.float32)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    np.save(elsewhere / "waveforms.npy", waveforms)
    (elsewhere / "user.py").write_text(USER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": logged.tracker.uri,
        "PYTHONDONTWRITEBYTECODE": "1",  # it reads the logged files in their place
    }
    done = subprocess.run(
        [sys.executable, "user.py", logged.model],
        cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "ype hint" not in done.stderr, done.stderr
    assert str(logged.folder / "mlartifacts") in done.stdout  # the code that was logged, not this tree
    out, encoder = np.load(elsewhere / "out.npz"), load_encoder(str(run))
    np.testing.assert_allclose(out["own"], encoder(waveforms, 16_000), atol=1e-5)
    np.testing.assert_allclose(out["other"], encoder(waveforms, 8_000), atol=1e-5)


def test_logging_leaves_the_settings_of_mlflow_as_they_were(logged):
    assert logged.kept


def test_the_signature_says_what_goes_in_and_out(run, logged, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged.tracker.uri)
    info = mlflow.models.get_model_info(logged.model)
    (given,), (made,) = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (given.type, given.shape) == (np.dtype(np.float32), (-1, -1))
    assert (made.type, made.shape) == (np.dtype(np.float32), (-1, load_encoder(str(run)).width))
    (parameter,) = info.signature.params.params
    assert (parameter.name, parameter.default) == ("sample_rate", 16_000)
    folder = mlflow.artifacts.download_artifacts(logged.model)
    names = {str(name) for _, _, files in os.walk(folder) for name in files}
    assert "input_example.json" in names and not [n for n in names if n.endswith((".pkl", ".pyc"))]


def test_an_export_logs_itself_where_the_run_s_tracking_uri_is_known(run, tmp_path, mlflow_uri, capsys):
    tracker = mlflow_run.start_run(mlflow_uri, "pretrain", output=str(tmp_path / "x"), params={}, tags={})
    (run / "run.json").write_text(json.dumps({"mlflow_uri": mlflow_uri, "mlflow_run": tracker.run_id}))
    export.main(ExportArgs(run=str(run), output=str(tmp_path / "out")))
    assert "MLflow model models:/" in capsys.readouterr().out
    notes = json.loads((tmp_path / "out" / EXPORT_JSON).read_text())["notes"]
    assert notes["mlflow_run"] == tracker.run_id
    experiment = tracker.client.get_experiment_by_name("ajepa")
    (found,) = tracker.client.search_runs([experiment.experiment_id], "tags.`ajepa.job` = 'export'")
    assert found.data.tags["ajepa.pretrain_run"] == tracker.run_id
    assert len(found.outputs.model_outputs) == 1


def test_an_export_is_logged_nowhere_where_no_tracking_uri_is_known(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (run / "run.json").write_text(json.dumps({"mlflow_uri": f"sqlite:///{tmp_path}/moved/mlflow.db"}))
    export.main(ExportArgs(run=str(run), output=str(tmp_path / "out")))
    assert "MLflow" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--log-model: the run does not say where MLflow is"):
        export.main(ExportArgs(run=str(run), output=str(tmp_path / "out2"), log_model="on"))
    assert not (tmp_path / "out2").exists()


def exports(address):
    client = mlflow.MlflowClient(address)
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, "tags.`ajepa.job` = 'export'")


def test_an_export_while_the_server_was_away_is_logged_by_the_same_command(
    run,
    tmp_path,
    mlflow_wire,  # noqa: F811
    monkeypatch,
    capsys,
):
    monkeypatch.setattr(mlflow_sender, "PATIENCE", 2.0)
    args = ExportArgs(run=str(run), output=str(tmp_path / "out"), mlflow_uri=f"http://127.0.0.1:{mlflow_wire.port}")
    mlflow_wire.break_now()
    export.main(args)
    assert "does not answer" in capsys.readouterr().err and exports(mlflow_wire.database) == []
    mlflow_wire.mend()
    export.main(args)
    assert "holds this encoder" in capsys.readouterr().out
    (found,) = exports(mlflow_wire.database)
    assert found.info.status == "FINISHED" and len(found.outputs.model_outputs) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "encoder.json", "encoder.safetensors"]
    export.main(args)
    assert "nothing to do" in capsys.readouterr().out and len(exports(mlflow_wire.database)) == 1


def test_an_export_of_another_branch_does_not_take_its_place(run, tmp_path):
    args = ExportArgs(run=str(run), output=str(tmp_path / "out"), log_model="off")
    export.main(args)
    with pytest.raises(UserError, match="exists: choose another"):
        export.main(dataclasses.replace(args, branch="context"))
