"""Cables that are out, a store and a tracking server that are away, and a lost head, each in the middle of a run of one
worker a host: it ends with the weights of an undisturbed run on one host, bit for bit."""

import time

import pytest
from helpers.faults import Holds, assert_same_end
from helpers.properties import NIGHTLY
from helpers.ray_hosts import WORKERS
from hosts.conftest import pretraining

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]
PROGRAM = "tests/helpers/held_pretrain.py"


@pytest.fixture
def held(hosts, request, shards):
    """(holds at steps 8 and 11, options of a run that keeps them, its output), named after the test."""
    name = request.node.name.partition("[")[0].removeprefix("test_") + str(len(list(hosts.shared.iterdir())))
    output = f"s3://sounds/{name}"
    return Holds(hosts.shared / name, 8), [f"/mnt/{name}", *pretraining(shards, output)], output


def test_a_cable_that_is_out_costs_a_failure_and_its_host_comes_back(hosts, held, run_alone):
    """Ray takes a host that nobody reaches for dead, even after its cable is back in; it has to be started again."""
    holds, arguments, output = held
    with hosts.submit(PROGRAM, arguments) as job:
        job.wait_for(lambda: holds.reached(8), "step 8")
        hosts.cut("worker2")
        holds.release(8)
        hosts.wait_for_nodes("head", "worker1")
        hosts.heal("worker2")
        hosts.stop_ray("worker2")
        hosts.start_ray("worker2")
        assert job.wait() == 0, job.text
    assert_same_end(hosts.fetch(output), run_alone)
    assert hosts.mlflow_runs(output) == ["FINISHED"]


@pytest.mark.parametrize("seconds", [20, 120] if NIGHTLY else [20])
def test_a_store_that_is_away(hosts, held, run_alone, seconds):
    """Nothing of the run fails: it waits, and says so where that takes long: nothing comes back at all, and it is
    seconds until the client gives a request up."""
    holds, arguments, output = held
    with hosts.submit(PROGRAM, [*arguments, "--max-failures", "0"]) as job:
        job.wait_for(lambda: holds.reached(8), "step 8")
        with hosts.without("store"):
            holds.release(8)
            time.sleep(seconds)
            assert job.process.poll() is None, job.text
        assert job.wait() == 0, job.text
    if seconds > 60:
        assert "s3://sounds does not answer: asking again" in job.text
        assert "s3://sounds answers again" in job.text
    assert_same_end(hosts.fetch(output), run_alone)
    assert hosts.mlflow_runs(output) == ["FINISHED"]


def test_a_tracking_server_that_is_away(hosts, held, run_alone):
    """The run ends without it; the same command sends what it did not get."""
    holds, arguments, output = held
    with hosts.submit(PROGRAM, arguments) as job:
        job.wait_for(lambda: holds.reached(8), "step 8")
        hosts.off("tracking")
        holds.release(8)
        code = job.wait()
        hosts.on("tracking")
        hosts.start_mlflow()
        assert code == 0, job.text
    assert "Traceback" not in job.text
    assert_same_end(hosts.fetch(output), run_alone)
    assert hosts.mlflow_runs(output) == ["RUNNING"]
    assert "nothing to do" in hosts.job("pipelines/pretrain.py", *arguments[1:])
    assert hosts.mlflow_runs(output) == ["FINISHED"]


def test_a_lost_head(hosts, held, run_alone):
    """Ray is started anew on all hosts; the same command goes on from the last checkpoint."""
    holds, arguments, output = held
    with hosts.submit(PROGRAM, arguments) as job:
        job.wait_for(lambda: holds.reached(8), "step 8")
        hosts.off("head")
    hosts.on("head")
    hosts.stop_ray(*WORKERS)
    hosts.start_ray("head", *WORKERS)
    holds.release(8)
    printed = hosts.job("pipelines/pretrain.py", *arguments[1:])
    assert "resuming at step 5" in printed
    assert_same_end(hosts.fetch(output), run_alone)
    assert hosts.mlflow_runs(output) == ["FINISHED"]
