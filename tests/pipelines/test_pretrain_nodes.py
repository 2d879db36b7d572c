"""Machines that go away under a training run, simulated by several Ray nodes on this one: lost, drained, fewer than
before."""

import time
from pathlib import Path

import psutil
import pytest
from helpers.faults import (
    PATIENCE,
    assert_close_end,
    assert_one_mlflow_run,
    assert_same_end,
    checkpoints,
    command,
    names,
    options,
    run,
)
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ajepa.checkpoints import latest_checkpoint, read_info
from pipelines.history import read_history

pytestmark = pytest.mark.ray

LONG = {"steps": 80, "every": 20}  # long enough to be met in the middle
RARE = {"steps": 80, "every": 1000}


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


@pytest.fixture(scope="module")
def by_two(small_dataset, tmp_path_factory, mlflow_uri, cluster):
    """The undisturbed run by two workers on two nodes."""
    folder = tmp_path_factory.mktemp("by-two")
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    arguments = options(small_dataset.path, folder / "run", mlflow_uri, "--num-workers", "2", **LONG)
    run(arguments, folder / "log", RAY_ADDRESS=cluster.address)
    return folder / "run"


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


def reached(output: Path) -> int:
    """The last reported step."""
    return read_history(str(output))[-1]["step"] if (output / "history.jsonl").exists() else 0


def test_a_lost_node_is_replaced(by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "2", **LONG)
    with command(arguments, tmp_path / "log", RAY_ADDRESS=cluster.address) as started:
        started.wait_for(lambda: checkpoints(output) != [], "its first checkpoint")
        assert [workers_on(node) for node in nodes] == [1, 1]
        lost = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - lost:.1f} s after the node was lost")
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)


def test_a_drained_node_has_a_checkpoint_written_before_it_goes(
    by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri
):
    """And it is no failure: none is allowed here. No checkpoint but this one and the last is due."""
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "2", "--max-failures", "0", **RARE)
    environment = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    with command(arguments, tmp_path / "log", **environment) as started:
        started.wait_for(lambda: reached(output) >= 10, "step 10")
        asked = time.monotonic()
        drain(cluster, nodes[0], PATIENCE)  # and no sooner than the checkpoint is there, however slow the machine
        started.wait_for(lambda: checkpoints(output) != [], "its checkpoint")
        print(f"drain: checkpoint of step {checkpoints(output)[0]} {time.monotonic() - asked:.1f} s after the notice")
        assert checkpoints(output)[0] < 80
        drain(cluster, nodes[0], 1)
        cluster.add_node(num_cpus=1)
        started.wait_for(lambda: not workers_on(nodes[0]), "the workers to leave at the deadline")
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - asked:.1f} s after the notice")
    assert_same_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)


def test_two_workers_go_on_as_one(by_two, cluster, nodes, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "1:2", **LONG)
    environment = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    with command(arguments, tmp_path / "log", **environment) as started:
        started.wait_for(lambda: checkpoints(output) != [], "its first checkpoint")
        assert [workers_on(node) for node in nodes] == [1, 1]
        lost = time.monotonic()
        cluster.remove_node(nodes[0], allow_graceful=False)
        started.wait_for(lambda: 40 in checkpoints(output), "a checkpoint after the loss")
        assert workers_on(nodes[1]) == 1
        assert started.wait() == 0, started.text
        print(f"at the end {time.monotonic() - lost:.1f} s after the node was lost")
    infos = [read_info(latest_checkpoint(str(path))) for path in (output, by_two)]
    assert infos[0].step == infos[1].step == 80
    assert_close_end(output, by_two)
    assert_one_mlflow_run(mlflow_uri, output)
