"""A host that is switched off while a job trains on it."""

import time

import psutil
import pytest
from helpers.faults import Holds, assert_same_end, names
from helpers.ray_hosts import WORKERS
from hosts.conftest import pretraining

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]


def workers_on(hosts, name: str) -> int:
    """Processes of training workers on a host."""
    processes = psutil.Process(hosts.first_process(name)).children(recursive=True)
    return sum("RayTrainWorker" in line for line in names(processes))


@pytest.mark.cluster
def test_a_run_whose_host_is_switched_off_ends_as_on_one_host(hosts, shards, run_alone):
    """The host comes back, and the run goes on from its last checkpoint with a worker on it."""
    holds, output = Holds(hosts.shared / "power", 8), "s3://sounds/power"
    arguments = ["/mnt/power", *pretraining(shards, output, "--max-failures", "1")]
    with hosts.submit("tests/helpers/held_pretrain.py", arguments) as job:
        job.wait_for(lambda: holds.reached(8), "step 8")
        assert [workers_on(hosts, name) for name in WORKERS] == [1, 1]
        lost = time.monotonic()
        hosts.off("worker2")
        hosts.on("worker2")
        hosts.start_ray("worker2")
        job.wait_for(lambda: holds.reached(8), "step 8 again")
        print(f"at step 8 again {time.monotonic() - lost:.0f} s after the host was lost")
        assert [workers_on(hosts, name) for name in WORKERS] == [1, 1]
        holds.release(8)
        assert job.wait() == 0, job.text
    assert_same_end(hosts.fetch(output), run_alone)
    assert hosts.mlflow_runs(output) == ["FINISHED"]
