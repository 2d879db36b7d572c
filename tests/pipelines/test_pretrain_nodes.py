"""Machines that go away under a training run, simulated by several Ray nodes on this one: lost, drained, fewer than
before."""

import time

import psutil
import pytest
import torch
from helpers.faults import (
    PATIENCE,
    WIDE,
    Holds,
    assert_close_end,
    assert_one_mlflow_run,
    checkpoints,
    command,
    names,
    options,
)
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ajepa.checkpoints import latest_checkpoint, read_info, read_weights

pytestmark = [pytest.mark.ray, pytest.mark.process, pytest.mark.cluster]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, where the command and Ray's controller run; machines of one CPU are added by the test."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.fixture
def nodes(cluster):
    return [cluster.add_node(num_cpus=1) for _ in range(2)]


def workers_on(node) -> int:
    """Processes of training workers on a simulated node."""
    return sum(
        "RayTrainWorker" in name
        for info in node.all_processes["raylet"]
        for name in names(psutil.Process(info.process.pid).children(recursive=True))
    )


def drain(cluster, node, seconds: float) -> None:
    """Give notice that a machine will be taken away in so many seconds; a later notice brings that forward."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = round(1000 * (time.time() + seconds))
    client = GcsClient(address=cluster.address)
    assert client.drain_node(node.node_id, reason, "a spot machine is taken back", deadline) == (True, "")


def assert_same_checkpoint(output, reference, step: int) -> None:
    ours, theirs = (read_weights(f"{folder}/checkpoints/step-{step:08d}") for folder in (output, reference))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_drained_node_has_a_checkpoint_written_before_it_goes_and_after_a_lost_one_the_other_goes_on(
    by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri
):
    """One run of one or two workers. A drained machine is replaced: the run goes on as if nothing had happened, bit
    for bit. The lost one is not: a single worker does the rest, to float32's accuracy. The loss is the one failure
    that is allowed: a drained node is none."""
    output, holds = tmp_path / "run", Holds(tmp_path / "holds", 6, 8, 11)
    more = ("--num-workers", "1:2", "--max-failures", "1", "--keep-checkpoints", "9")
    arguments = options(small_dataset.path, output, mlflow_uri, *more, width=WIDE)
    environment = {
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",  # this process may have started a Ray without it
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    }
    with command(arguments, tmp_path / "log", holds, **environment) as started:
        started.wait_for(lambda: holds.reached(6), "step 6")
        assert [workers_on(node) for node in nodes] == [1, 1]
        asked = time.monotonic()
        drain(cluster, nodes[0], PATIENCE)  # and no sooner than the checkpoint is there, however slow the machine
        started.wait_for(lambda: len(checkpoints(output)) == 2, "its checkpoint")
        print(f"drain: checkpoint of step {checkpoints(output)[1]} {time.monotonic() - asked:.1f} s after the notice")
        assert checkpoints(output)[1] < 8
        started.wait_for(lambda: holds.reached(8), "step 8")
        replacement = cluster.add_node(num_cpus=1)
        drain(cluster, nodes[0], 1)
        started.wait_for(lambda: not workers_on(nodes[0]), "the workers to leave at the deadline")
        cluster.remove_node(nodes[0], allow_graceful=False)
        started.wait_for(lambda: holds.reached(8), "step 8 again")
        print(f"at step 8 again {time.monotonic() - asked:.1f} s after the notice")
        assert [workers_on(node) for node in (nodes[1], replacement)] == [1, 1]
        holds.release(8)
        started.wait_for(lambda: 10 in checkpoints(output) and holds.reached(11), "step 11")
        assert_same_checkpoint(output, by_two, 10)

        lost = time.monotonic()
        cluster.remove_node(nodes[1], allow_graceful=False)
        started.wait_for(lambda: holds.reached(11), "step 11 again")
        assert workers_on(replacement) == 1
        holds.release(11)
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - lost:.1f} s after the node was lost")
    infos = [read_info(latest_checkpoint(str(path))) for path in (output, by_two)]
    assert infos[0].step == infos[1].step == 12
    assert_close_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
