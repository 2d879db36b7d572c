"""MLflow runs of commands that were killed or stopped do not stay RUNNING."""

import socket

import mlflow
import pytest

from pipelines.tracking import mlflow_run

pytestmark = pytest.mark.process


def start(uri, output, job="test", **more):
    tags = {"ajepa.job": job}
    return mlflow_run.start_run(uri, f"of {output}", output=str(output), params={}, tags=tags, **more)


def status(uri, run_id):
    return mlflow.MlflowClient(uri).get_run(run_id).info.status


def killed(uri, output, job="test", host=None):
    """The run of a command that was killed, on a host."""
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name("ajepa")
    experiment = found.experiment_id if found else client.create_experiment("ajepa")
    place = output if "://" in str(output) else f"{host or socket.gethostname()}:{output}"
    return client.create_run(experiment, tags={"ajepa.job": job, "ajepa.output": place}).info.run_id


@pytest.mark.parametrize("name", ["a", "of 'quotes'", 'of "others"', "100% of ü"])
def test_a_killed_command_s_run_is_ended_by_the_next_on_its_output(name, mlflow_uri, tmp_path):
    output = tmp_path / name
    output.mkdir()
    same = killed(mlflow_uri, output)
    others = [
        killed(mlflow_uri, tmp_path / "b"),
        killed(mlflow_uri, output, job="another"),
        killed(mlflow_uri, output, host="elsewhere"),
    ]
    tracker = start(mlflow_uri, output)
    with tracker.recording():
        assert status(mlflow_uri, same) == "KILLED"
        assert status(mlflow_uri, tracker.run_id) == "RUNNING"
        assert [status(mlflow_uri, other) for other in others] == ["RUNNING"] * 3
    assert status(mlflow_uri, tracker.run_id) == "FINISHED"


def test_that_of_an_output_on_a_store_whatever_the_host(s3, mlflow_uri):
    same = killed(mlflow_uri, "s3://sounds/run")
    with start(mlflow_uri, "s3://sounds/run").recording():
        assert status(mlflow_uri, same) == "KILLED"


def test_a_run_that_goes_on_is_not_ended(mlflow_uri, tmp_path):
    before = killed(mlflow_uri, tmp_path)
    tracker = start(mlflow_uri, tmp_path, resumed=before)
    with tracker.recording():
        assert tracker.run_id == before and status(mlflow_uri, before) == "RUNNING"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nested_runs_end_with_a_parent_that_is_stopped(error, mlflow_uri, tmp_path):
    for name in ("tables", "trial"):
        (tmp_path / name).mkdir()
    parent = start(mlflow_uri, tmp_path / "tables")
    with pytest.raises(error), parent.recording():
        trial = start(mlflow_uri, tmp_path / "trial", parent=parent.run_id)
        finished = start(mlflow_uri, tmp_path / "trial", job="finished", parent=parent.run_id)
        with finished.recording():
            pass
        raise error
    assert status(mlflow_uri, trial.run_id) == "KILLED"
    assert status(mlflow_uri, finished.run_id) == "FINISHED"
    trial._sender.finish("FINISHED")  # its process would be gone
