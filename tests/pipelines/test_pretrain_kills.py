"""Killed, terminated and interrupted: workers and the command itself. The run ends with the weights of an undisturbed
one, bit for bit, and is recorded once."""

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest
import ray
from helpers import held_pretrain
from helpers.faults import (
    PATIENCE,
    WIDE,
    Failure,
    Holds,
    assert_one_mlflow_run,
    assert_same_end,
    checkpoints,
    command,
    failing_worker,
    names,
    of_one_ray,
    options,
    wait_for,
)
from helpers.held_pretrain import holding_worker, step_that_holds

from ajepa.training import loop
from ajepa.training.run_folder import read_history
from pipelines.cli.command import run_command
from pipelines.jobs.pretrain import main
from pipelines.pretrain import parse_args
from pipelines.rayjobs import stop_requests, train_workers

LONG = {"steps": 40, "every": 10}


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def alone(small_dataset, tmp_path_factory, mlflow_uri):
    """The undisturbed run of 40 steps by one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "0", **LONG)))
    return output


@pytest.mark.ray
@pytest.mark.cluster
def test_workers_that_end_are_replaced(by_two, small_dataset, tmp_path, mlflow_uri, monkeypatch):
    """One is terminated, which has its step saved first; then one is killed at a step, one right after a checkpoint."""
    output = tmp_path / "run"
    failures = (
        Failure("step", 7, 1, signal.SIGTERM),
        Failure("step", 9, 1, signal.SIGKILL),
        Failure("checkpoint", 10, 0, signal.SIGKILL),
    )
    monkeypatch.setattr(train_workers, "train_worker", failing_worker(tmp_path, *failures))
    more = ("--num-workers", "2", "--keep-checkpoints", "9")
    main(parse_args(options(small_dataset.path, output, mlflow_uri, *more, width=WIDE)))
    terminated, *killed = (failure.flag(tmp_path) for failure in failures)
    assert all(flag.exists() for flag in killed)
    assert checkpoints(output) == [5, 8, 10, 12]  # asked before the step that follows
    saved = output / "checkpoints/step-00000008/checkpoint.json"
    print(
        f"grace: the checkpoint was there {saved.stat().st_mtime - float(terminated.read_text()):.2f} s after SIGTERM"
    )
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
    ours, theirs = ([r["step"] for r in read_history(str(run)) if r["step"] != 10] for run in (output, by_two))
    assert ours == theirs  # of step 10 the one who was to report died, with its checkpoint written


def wait_for_end(processes: list[psutil.Process]) -> None:
    """Ray's processes end after the command, by themselves where it was killed. Its agents take a minute for that;
    they are not waited for, they train nothing."""
    wait_for(lambda: not [name for name in names(processes) if "gent" not in name], "the end of Ray")
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=PATIENCE)


@pytest.mark.process
@pytest.mark.parametrize("num_workers", ["0", pytest.param("1", marks=[pytest.mark.ray, pytest.mark.cluster])])
def test_a_command_stopped_again_and_again_goes_on(
    num_workers, alone, small_dataset, tmp_path, mlflow_uri, request, monkeypatch, capfd
):
    """kill -9, then Ctrl-C, each to a command of its own with a Ray of its own, which might outlive it or hear of the
    signal; then SIGTERM to this process, with the session's Ray; then to the end."""
    output = tmp_path / "run"
    arguments = [*options(small_dataset.path, output, mlflow_uri, **LONG), "--num-workers", num_workers]
    reached = 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        wanted = reached - reached % 10 + 10
        holds = Holds(tmp_path / f"holds-{number.name}", wanted + 3)
        with command(arguments, tmp_path / number.name, holds) as started:
            started.wait_for(lambda wanted=wanted: checkpoints(output)[-1:] >= [wanted], f"checkpoint {wanted}")
            started.wait_for(lambda holds=holds, at=wanted + 3: holds.reached(at), f"step {wanted + 3}")
            processes, sent = started.children(), time.monotonic()
            if number == signal.SIGINT:
                os.killpg(started.process.pid, number)  # a terminal sends Ctrl-C to the whole group
            else:
                started.process.send_signal(number)
            assert started.wait() == code, started.text
            wait_for_end(processes)
        last = reached
        reached = checkpoints(output)[-1]
        print(f"{number.name}: all gone after {time.monotonic() - sent:.1f} s, checkpoint of step {reached}")
        assert_stopped_well(number, started.text, output, last, wanted)

    if num_workers != "0":
        request.getfixturevalue("ray_session")
    wanted = reached - reached % 10 + 10
    holds = Holds(tmp_path / "holds-SIGTERM", wanted + 3)
    with monkeypatch.context() as patch:
        patch.setattr(stop_requests, "POLL_SECONDS", 0.0)
        if num_workers == "0":
            patch.setattr(loop, "train_step", step_that_holds(str(holds.folder), str(output), in_ray=False))
        else:
            ray.cloudpickle.register_pickle_by_value(held_pretrain)  # a worker cannot import it
            patch.setattr(train_workers, "train_worker", holding_worker(str(holds.folder)))
        killer = threading.Thread(target=terminate_at, args=(holds, wanted + 3), daemon=True)
        killer.start()
        with pytest.raises(SystemExit) as exit_:
            run_command(lambda: main(parse_args(arguments)))
        killer.join()
    assert exit_.value.code == 143
    printed = capfd.readouterr()
    last = reached
    reached = checkpoints(output)[-1]
    assert_stopped_well(signal.SIGTERM, of_one_ray(printed.out + printed.err), output, last, wanted)

    main(parse_args([*arguments[:-1], "0"]))
    assert f"resuming at step {reached}" in capfd.readouterr().out
    assert_same_end(output, alone)
    assert_one_mlflow_run(mlflow_uri, output)


def terminate_at(holds: Holds, step: int) -> None:
    """Send this process SIGTERM when training holds after a step."""
    wait_for(lambda: holds.reached(step), f"step {step}")
    os.kill(os.getpid(), signal.SIGTERM)


def assert_stopped_well(number: signal.Signals, text: str, output, last: int, wanted: int) -> None:
    """A command that began after the checkpoint of step `last` and was stopped after that of step `wanted`."""
    assert f"resuming at step {last}" in text if last else "resuming" not in text
    reached = checkpoints(output)[-1]
    assert wanted <= reached < LONG["steps"]
    if number != signal.SIGKILL:
        assert reached > wanted  # the step it was in
        assert "Traceback" not in text, text
        assert text.count("run the same command again") == 1
        assert not (output / "STOP").exists()
