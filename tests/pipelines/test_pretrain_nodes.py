"""Machines that go away under a training run, simulated by several Ray nodes on this one: lost, drained, fewer than
before."""

import time

import psutil
import pytest
from helpers.faults import (
    PATIENCE,
    WIDE,
    Holds,
    assert_close_end,
    assert_one_mlflow_run,
    assert_same_end,
    checkpoints,
    command,
    names,
    options,
)
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ajepa.checkpoints import latest_checkpoint, read_info

pytestmark = [pytest.mark.ray, pytest.mark.process]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, where the command and Ray's controller run; two machines of one CPU are added a test."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.fixture
def nodes(cluster):
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    yield list(cluster.worker_nodes)
    for node in list(cluster.worker_nodes)[2:]:
        cluster.remove_node(node, allow_graceful=False)


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


def test_a_drained_node_has_a_checkpoint_written_before_it_goes_and_a_lost_one_is_replaced(
    by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri
):
    """The loss is the one failure that is allowed: a drained node is none. No checkpoint but that of the drain and the
    last is due: the run that lost a node has gone on from the first."""
    output, holds = tmp_path / "run", Holds(tmp_path / "holds", 6, 9)
    more = ("--num-workers", "2", "--max-failures", "1")
    arguments = options(small_dataset.path, output, mlflow_uri, *more, every=1000, width=WIDE)
    environment = {
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",  # this process may have started a Ray without it
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
    }
    with command(arguments, tmp_path / "log", holds, **environment) as started:
        started.wait_for(lambda: holds.reached(6), "step 6")
        asked = time.monotonic()
        drain(cluster, nodes[0], PATIENCE)  # and no sooner than the checkpoint is there, however slow the machine
        started.wait_for(lambda: checkpoints(output) != [], "its checkpoint")
        print(f"drain: checkpoint of step {checkpoints(output)[0]} {time.monotonic() - asked:.1f} s after the notice")
        assert checkpoints(output)[0] < 9
        started.wait_for(lambda: holds.reached(9), "step 9")
        drain(cluster, nodes[0], 1)
        cluster.add_node(num_cpus=1)
        started.wait_for(lambda: not workers_on(nodes[0]), "the workers to leave at the deadline")
        cluster.remove_node(nodes[0], allow_graceful=False)
        started.wait_for(lambda: holds.reached(9), "step 9 again")
        print(f"at step 9 again {time.monotonic() - asked:.1f} s after the notice")

        assert [workers_on(node) for node in cluster.worker_nodes] == [1, 1]
        lost = time.monotonic()
        cluster.remove_node(nodes[1], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        holds.release(9)
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - lost:.1f} s after the node was lost")
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)


def test_two_workers_go_on_as_one(by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri):
    output, holds = tmp_path / "run", Holds(tmp_path / "holds", 7, 11)
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "1:2", width=WIDE)
    environment = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    with command(arguments, tmp_path / "log", holds, **environment) as started:
        started.wait_for(lambda: checkpoints(output) == [5] and holds.reached(7), "its first checkpoint")
        assert [workers_on(node) for node in nodes] == [1, 1]
        lost = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        holds.release(7)
        started.wait_for(lambda: 10 in checkpoints(output) and holds.reached(11), "a checkpoint after the loss")
        assert workers_on(nodes[1]) == 1
        holds.release(11)
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - lost:.1f} s after the node was lost")
    infos = [read_info(latest_checkpoint(str(path))) for path in (output, by_two)]
    assert infos[0].step == infos[1].step == 12
    assert_close_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
