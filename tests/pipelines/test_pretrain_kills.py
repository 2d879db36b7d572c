"""Killed, terminated and interrupted: workers and the command itself. The run ends with the weights of an undisturbed
one, bit for bit, and is recorded once."""

import contextlib
import os
import signal
import time

import psutil
import pytest
from helpers.faults import (
    PATIENCE,
    assert_one_mlflow_run,
    assert_same_end,
    checkpoints,
    command,
    failing_worker,
    names,
    options,
    run,
    wait_for,
)

from pipelines import ray_training
from pipelines.history import read_history
from pipelines.jobs.pretrain import main
from pipelines.pretrain import parse_args

# Long enough to be met in the middle.
LONG = {"steps": 100, "every": 10}


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def alone(small_dataset, tmp_path_factory, mlflow_uri):
    """The undisturbed run of 100 steps by one process."""
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
    monkeypatch.setattr(ray_training, "train_worker", failing_worker(8, 1, signal.SIGKILL, flag))
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "2")))
    assert flag.exists()
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
    assert [r["step"] for r in read_history(str(output))] == [r["step"] for r in read_history(str(by_two))]


@pytest.mark.ray
def test_a_terminated_worker_has_its_step_saved_first(by_two, small_dataset, tmp_path, mlflow_uri, monkeypatch):
    flag, output = tmp_path / "terminated", tmp_path / "run"
    monkeypatch.setattr(ray_training, "train_worker", failing_worker(7, 1, signal.SIGTERM, flag))
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "2", "--keep-checkpoints", "9")))
    saved = output / "checkpoints/step-00000008/checkpoint.json"  # asked before the step that follows
    assert checkpoints(output) == [5, 8, 10, 12]
    print(f"grace: the checkpoint was there {saved.stat().st_mtime - float(flag.read_text()):.2f} s after SIGTERM")
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Ray's processes end after the command, by themselves where it was killed. Its agents take a minute for that;
    they are not waited for, they train nothing."""
    wait_for(lambda: not [name for name in names(processes) if "gent" not in name], "the end of Ray")
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_command_stopped_again_and_again_goes_on(num_workers, alone, small_dataset, tmp_path, mlflow_uri):
    """SIGTERM, then Ctrl-C, then kill -9, each in the middle, then to the end. With a Ray of its own each time."""
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", str(num_workers), **LONG)
    reached = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        with command(arguments, tmp_path / number.name) as started:
            wanted = reached - reached % 10 + 10
            started.wait_for(lambda wanted=wanted: checkpoints(output)[-1:] >= [wanted], f"checkpoint {wanted}")
            processes, sent = started.children(), time.monotonic()
            if number == signal.SIGINT:
                os.killpg(started.process.pid, number)  # a terminal sends Ctrl-C to the whole group
            else:
                started.process.send_signal(number)
            assert started.wait() == code, started.text
            wait_for_end(processes)
            assert f"resuming at step {reached}" in started.text if reached else "resuming" not in started.text
            reached = checkpoints(output)[-1]
            print(f"{number.name}: all gone after {time.monotonic() - sent:.1f} s, checkpoint of step {reached}")
            assert wanted <= reached < LONG["steps"]
            if number != signal.SIGKILL:
                assert reached > wanted  # the step it was in
                assert "Traceback" not in started.text, started.text
                assert started.text.count("run the same command again") == 1
                assert not (output / "STOP").exists()
    assert f"resuming at step {reached}" in run(arguments, tmp_path / "last")
    assert_same_end(output, alone)
    assert_one_mlflow_run(mlflow_uri, output)
