"""Machines that go away under a training run, simulated by several Ray nodes on this one: lost, drained, fewer than
before."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faults import assert_one_mlflow_run, assert_same_end, checkpoints, command, options
from ray.cluster_utils import Cluster

from ajepa.training.checkpoint import latest_checkpoint, read_info, read_weights
from pipelines.pretrain import main, parse_args

pytestmark = pytest.mark.ray

LONG = {"steps": 40, "every": 10}


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs; every test brings its own machines of one CPU."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.fixture
def two_nodes(cluster):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield nodes
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def by_two(small_dataset, tmp_path_factory, mlflow_uri, cluster):
    """The undisturbed run by two workers on two nodes."""
    ...


def test_a_lost_node_is_replaced(cluster, two_nodes, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "run"
    arguments = options(small_dataset.path, output, mlflow_uri, "--num-workers", "2", **LONG)
    with command(arguments, tmp_path / "log", RAY_ADDRESS=cluster.address) as started:
        started.wait_for(lambda: checkpoints(output) == [10], "its first checkpoint")
        lost = time.monotonic()
        cluster.remove_node(two_nodes[0], allow_graceful=False)
        print("removed", time.monotonic()-lost)
        cluster.add_node(num_cpus=1)
        print("added", time.monotonic()-lost)
        started.wait_for(lambda: 20 in checkpoints(output), "a checkpoint after the loss")
        print(f"trained on {time.monotonic() - lost:.1f} s after the node was lost")
        code = started.wait()
        print(started.text)
        assert code == 0, started.text
    assert_one_mlflow_run(mlflow_uri, output)
