"""How many workers, what their reports come to, and requests to stop."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.faults import PATH, PATIENCE, ROOT, wait_for

from ajepa.errors import UserError
from ajepa.training.worker import StopRequest
from pipelines.ablate import AblateArgs
from pipelines.cli.arguments import choose_threads, parse_workers
from pipelines.jobs import ablate
from pipelines.rayjobs import stop_requests
from pipelines.rayjobs.stop_requests import StopPoller, Terminated, graceful
from pipelines.tracking.reporter import line, merge


@pytest.mark.parametrize(("given", "workers"), [(0, 0), ("1", 1), (8, 8), ("4:8", (4, 8)), ("2:2", (2, 2))])
def test_workers_are_a_number_or_a_range(given, workers):
    assert parse_workers(given) == workers


@pytest.mark.parametrize("given", ["", "-1", "a", "8:4", "0:2", "1:2:3", "1.5"])
def test_other_numbers_of_workers_are_a_users_mistake(given):
    with pytest.raises(UserError, match="a range like 4:8"):
        parse_workers(given)


def test_figures_of_uneven_shares_are_averaged_by_their_clips():
    same = {"step": 2, "lr": 0.1, "averaged": ["loss"]}
    metrics = [same | {"loss": 1.0, "share": 0.75}, same | {"loss": 2.0, "share": 0.25}]
    assert merge(metrics) == {"step": 2, "loss": 1.25, "lr": 0.1}


def test_what_rank_0_measures_alone_is_kept():
    assert merge([{"step": 0, "effective_rank": 3.0}, {"step": 0}]) == {"step": 0, "effective_rank": 3.0}


def test_the_terminal_line_names_step_loss_speed_time_and_verdict():
    report = {
        "step": 20, "total_steps": 100, "loss": 0.51234, "clips_per_second": 412.3, "seconds_per_step": 3.0,
        "data_wait": 0.002, "checkpoint_wait": 0.01, "mfu": 0.713, "verdict": "effective rank 7.3: learning",
    }  # fmt: skip
    wanted = "step 20/100  loss 0.5123  412 clips/s  MFU 0.71  waiting 1%  4 min left  effective rank 7.3: learning"
    assert line(report) == wanted
    assert "  18 s left  " in line(report | {"step": 94}) and "  0 s left  " in line(report | {"step": 100})


def test_a_stop_file_stops_rank_0(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_requests, "POLL_SECONDS", 0.0)
    requests = [StopPoller(str(tmp_path), rank, in_ray=False) for rank in (0, 1)]
    assert [ask() for ask in requests] == [StopRequest.GO_ON, StopRequest.GO_ON]
    (tmp_path / "STOP").touch()
    assert [ask() for ask in requests] == [StopRequest.STOP, StopRequest.GO_ON]


def test_a_store_that_does_not_answer_holds_up_no_step(monkeypatch):
    """The look for the STOP file of a run in a store is not waited for."""
    monkeypatch.setattr(stop_requests, "STORE_POLL_SECONDS", 0.0)
    asked, answer = threading.Event(), threading.Event()

    def path_type(path):
        asked.set()
        answer.wait(PATIENCE)
        return "file"

    monkeypatch.setattr(stop_requests.storage, "path_type", path_type)
    ask = StopPoller("s3://bucket/run", 0, in_ray=False)
    assert ask() == StopRequest.GO_ON
    asked.wait(PATIENCE)
    assert [ask() for _ in range(5)] == [StopRequest.GO_ON] * 5
    answer.set()
    wait_for(lambda: ask() == StopRequest.STOP, "the answer")


def test_cpus_are_shared_out_where_linux_is_not(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [choose_threads(None, n) for n in (0, 1, 3, 100)] == [8, 8, 2, 1] and choose_threads(5, 2) == 5


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        ({}, 0, ({"cpu": 2, "gpu": 0}, None)),  # Ray runs as many at a time as there are resources for
        ({}, 2, ({"cpu": 2, "gpu": 1}, None)),
        ({"gpus_per_trial": 0.25}, 2, ({"cpu": 2, "gpu": 0.25}, None)),
        ({"gpus_per_trial": 0.0}, 2, ({"cpu": 2, "gpu": 0}, None)),
        ({"num_workers": 2}, 4, ({"cpu": 0}, 2)),  # its workers hold them
        ({"num_workers": 4}, 0, ({"cpu": 0}, 2)),
    ],
)
def test_trials_take_no_more_than_there_is(monkeypatch, options, gpus, expected):
    monkeypatch.setattr(ablate, "cluster_cpus", lambda: 8)
    monkeypatch.setattr(ablate, "cluster_resource", lambda _: gpus)
    monkeypatch.setattr(ablate, "largest_node", lambda name: 8 if name == "CPU" else gpus)
    args = AblateArgs(tables=("loss",), data="d", output="o", threads=2, **options)
    assert ablate.trial_resources(args) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_workers": 2}, "a trial needs 2 GPUs, the cluster has 1"),
        ({"num_workers": 9}, "a trial needs 9 CPUs, the cluster has 8"),
        ({"gpus_per_trial": 2.0}, "a trial needs 2 GPUs, no node has more than 1"),
        ({"threads": 5}, "a trial needs 5 CPUs, no node has more than 4"),
    ],
)
def test_trials_that_fit_nowhere_are_refused(monkeypatch, options, match):
    monkeypatch.setattr(ablate, "cluster_cpus", lambda: 8)
    monkeypatch.setattr(ablate, "cluster_resource", lambda _: 1)
    monkeypatch.setattr(ablate, "largest_node", lambda name: 4 if name == "CPU" else 1)
    with pytest.raises(UserError, match=match):
        ablate.trial_resources(AblateArgs(tables=("loss",), data="d", output="o", **options))


ORPHAN = """
import os, sys, time
from pipelines.rayjobs.stop_requests import Orphaned, StopPoller
ready, tell = os.pipe()
parent = os.getpid()
if os.fork():
    os.read(ready, 1)
    os._exit(0)
ask = StopPoller(sys.argv[1], 1, in_ray=True)
os.write(tell, b"x")
while os.getppid() == parent:
    time.sleep(0.01)
try:
    ask()
except Orphaned as error:
    print(error)
"""


@pytest.mark.process
def test_a_worker_whose_ray_has_ended_does_no_further_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        cwd=ROOT, env=os.environ | PATH, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout == "Ray has ended\n", done.stderr


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_first_signal_asks_and_leaves_no_trace(tmp_path, number, error):
    before = signal.getsignal(number)
    with pytest.raises(error), graceful(str(tmp_path)):
        os.kill(os.getpid(), number)
        assert StopPoller(str(tmp_path), 1, in_ray=False)() == StopRequest.STOP
        assert Path(tmp_path, "STOP").exists()
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) == before
    assert StopPoller(str(tmp_path), 0, in_ray=False)() == StopRequest.GO_ON


def test_a_second_signal_ends_at_once(tmp_path):
    reached = []
    with pytest.raises(KeyboardInterrupt), graceful(str(tmp_path)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("the next line")
    assert not reached


def test_a_signal_is_noted_without_print_which_cannot_be_entered_twice(tmp_path, monkeypatch, capfd):
    class InTheMiddleOfAWrite:
        def write(self, text):
            raise RuntimeError("reentrant call inside a buffered writer")

        def flush(self):
            pass

    monkeypatch.setattr("sys.stderr", InTheMiddleOfAWrite())
    with pytest.raises(KeyboardInterrupt), graceful(str(tmp_path)):
        os.kill(os.getpid(), signal.SIGINT)
    assert "stopping after this step, with a checkpoint" in capfd.readouterr().err
