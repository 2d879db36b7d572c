"""Killed, terminated and interrupted: workers and the command itself. The run ends with the weights of an undisturbed
one, bit for bit, and is recorded once."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from faults import assert_one_mlflow_run, assert_same_end, checkpoints, command, failing_worker, options, run, wait_for

from pipelines import workers
from pipelines.history import read_history
from pipelines.pretrain import main, parse_args

LONG = {"steps": 40, "every": 10}  # long enough to be met in the middle


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def alone(small_dataset, tmp_path_factory, mlflow_uri):
    """The undisturbed run of 40 steps by one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "0", **LONG)))
    return output


@pytest.fixture(scope="module")
def by_two(small_dataset, tmp_path_factory, mlflow_uri, ray_session):
    """The undisturbed run of 12 steps by two workers."""
    output = tmp_path_factory.mktemp("by-two") / "run"
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "2")))
    return output


@pytest.mark.ray
def test_a_killed_worker_is_replaced(by_two, small_dataset, tmp_path, mlflow_uri, monkeypatch):
    flag, output = tmp_path / "killed", tmp_path / "run"
    monkeypatch.setattr(workers, "train_worker", failing_worker(8, 1, signal.SIGKILL, flag))
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "2")))
    assert flag.exists()
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
    assert [r["step"] for r in read_history(str(output))] == [r["step"] for r in read_history(str(by_two))]


@pytest.mark.ray
def test_a_terminated_worker_has_its_step_saved_first(by_two, small_dataset, tmp_path, mlflow_uri, monkeypatch):
    flag, output = tmp_path / "terminated", tmp_path / "run"
    monkeypatch.setattr(workers, "train_worker", failing_worker(7, 1, signal.SIGTERM, flag))
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "2", "--keep-checkpoints", "9")))
    saved = output / "checkpoints/step-00000008/checkpoint.json"  # asked before the step that follows
    assert checkpoints(output) == [5, 8, 10, 12]
    print(f"grace: the checkpoint was there {saved.stat().st_mtime - float(flag.read_text()):.2f} s after SIGTERM")
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_signal_stops_the_command_with_a_checkpoint(num_workers, number, alone, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", str(num_workers), **LONG)
    with command(arguments, tmp_path / "log") as started:
        started.wait_for(lambda: checkpoints(output) == [10], "its first checkpoint")
        sent = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(started.process.pid, number)  # a terminal sends Ctrl-C to the whole group
        else:
            started.process.send_signal(number)
        assert started.wait() == (143 if number == signal.SIGTERM else 130), started.text
        print(f"stopped after {time.monotonic() - sent:.1f} s at step {checkpoints(output)[-1]}")
        assert 10 < checkpoints(output)[-1] < 40, started.text
        assert "Traceback" not in started.text, started.text
        assert started.text.count("run the same command again") == 1
    assert not (output / "STOP").exists()
    assert f"resuming at step {checkpoints(output)[-1]}" in run(arguments, tmp_path / "log again")
    assert_same_end(output, alone)
    assert_one_mlflow_run(mlflow_uri, output)


@pytest.mark.ray
def test_a_killed_command_goes_on(alone, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "1", **LONG)
    with command(arguments, tmp_path / "log") as started:
        started.wait_for(lambda: checkpoints(output) == [10], "its first checkpoint")
        orphans = started.children()
        started.process.kill()
        started.wait()
        psutil.wait_procs(orphans, timeout=60)
        assert not [p for p in orphans if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert 40 not in checkpoints(output)
    assert "resuming at step" in run(arguments, tmp_path / "log again")
    assert_same_end(output, alone)
    assert_one_mlflow_run(mlflow_uri, output)
