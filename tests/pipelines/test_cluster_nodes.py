"""Nodes that come, that see other folders, or that want a token: said in one line, before anything is written."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.faults import PATH, Holds, command, options, wait_for
from ray.cluster_utils import Cluster

from ajepa import storage

RAY = f"{Path(sys.executable).parent}/ray"
pytestmark = [pytest.mark.ray, pytest.mark.process, pytest.mark.cluster]


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def cluster():
    """A head without CPUs."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield made
    made.shutdown()


@pytest.fixture
def node_with_a_disk_of_its_own(cluster, tmp_path):
    """A node of one CPU that has an empty folder where this machine has the one that is returned."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    folder = tmp_path / "own"
    folder.mkdir()
    start = f"{RAY} start --address={cluster.address} --num-cpus=1 --block"
    script = f'mount -t tmpfs none "$0" && exec {start} --disable-usage-stats'
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script, str(folder)]
    with (tmp_path / "node.log").open("w") as log:
        node = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield folder
    finally:
        node.kill()
        node.wait()


def test_workers_wait_for_nodes_of_their_own(cluster, small_dataset, tmp_path, mlflow_uri):
    """Two CPUs of one node are not enough for --spread; the run begins when a second node has joined."""
    cluster.add_node(num_cpus=2)
    output = tmp_path / "run"
    more = ("--num-workers", "2", "--spread", "--wait-for-resources", "600")
    argv = options(small_dataset.path, output, mlflow_uri, *more, steps=2)
    with command(argv, tmp_path / "log", RAY_ADDRESS=cluster.address) as run:
        run.wait_for(lambda: "waiting for 2 CPUs on 2 nodes: the cluster has 2 on 1; " in run.text, "what it waits for")
        assert not output.exists() or storage.contents(str(output)) == set()
        cluster.add_node(num_cpus=1)
        assert run.wait() == 0, run.text
    assert "Traceback" not in run.text


def test_workers_that_wait_for_another_job_say_what_is_free(cluster, small_dataset, tmp_path, mlflow_uri):
    """Whenever that changes, and when the wait is over."""
    cluster.add_node(num_cpus=2)
    holds = Holds(tmp_path / "holds", 1)
    first, second = (
        options(small_dataset.path, tmp_path / name, mlflow_uri, "--num-workers", "2", steps=2)
        for name in ("first", "second")
    )
    address = {"RAY_ADDRESS": cluster.address}
    with command(first, tmp_path / "first.log", holds, **address) as holder:
        holder.wait_for(lambda: holds.reached(1), "step 1")
        with command(second, tmp_path / "second.log", **address) as run:
            waiting = "waiting for 2 CPUs that other jobs of the cluster use:"
            run.wait_for(lambda: f"{waiting} 0 free now\n" in run.text, "what it waits for")
            cluster.add_node(num_cpus=1)
            run.wait_for(lambda: f"{waiting} 1 free now\n" in run.text, "that it is told of the new node")
            assert "the workers have their 2 CPUs" not in run.text
            holds.release(1)
            assert holder.wait() == 0, holder.text
            assert run.wait() == 0, run.text
    assert run.text.count(waiting) == 2
    assert run.text.count("the workers have their 2 CPUs\n") == 1
    assert waiting not in holder.text and "the workers have" not in holder.text


def test_too_few_nodes_are_one_line(cluster, small_dataset, tmp_path, mlflow_uri):
    cluster.add_node(num_cpus=2)
    argv = options(small_dataset.path, tmp_path / "run", mlflow_uri, "--num-workers", "2", "--spread")
    with command(argv, tmp_path / "log", RAY_ADDRESS=cluster.address) as run:
        assert run.wait() == 2
    assert "error: --spread puts 2 workers on as many nodes; 1 have CPUs" in run.text
    assert not (tmp_path / "run").exists()


def test_an_output_that_one_node_does_not_see_is_refused(
    cluster, node_with_a_disk_of_its_own, small_dataset, tmp_path, mlflow_uri
):
    output = node_with_a_disk_of_its_own / "run"
    more = ("--num-workers", "1", "--wait-for-resources", "600")
    argv = options(small_dataset.path, output, mlflow_uri, *more, steps=2)
    with command(argv, tmp_path / "log", RAY_ADDRESS=cluster.address) as run:
        assert run.wait() == 2, run.text
    assert f"error: --output '{output}' is on this machine alone: node " in run.text
    assert "does not see what this process writes there. Give a URI like s3://bucket/folder" in run.text
    assert not output.exists()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The address of a head that wants a token, the environment that it accepts, and its RAY_TMPDIR."""
    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 64}
    log = tmp_path_factory.mktemp("head") / "log"
    own = Path(tempfile.mkdtemp(dir="/tmp"))  # it leaves its address there; paths of sockets are short
    argv = [RAY, "start", "--head", "--port=0", "--num-cpus=0", "--include-dashboard=false", "--block"]
    with log.open("w") as stream:
        head = subprocess.Popen(
            argv, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | right | {"RAY_TMPDIR": str(own)}
        )
    try:
        wait_for(lambda: "--address='" in log.read_text(), "the head", lambda: head.poll() is None)
        yield log.read_text().partition("--address='")[2].partition("'")[0], right, str(own)
    finally:
        head.terminate()
        head.wait()
        shutil.rmtree(own, ignore_errors=True)


@pytest.mark.parametrize("wrong", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"])
def test_a_token_that_the_cluster_refuses_is_one_line(wrong, guarded, small_dataset, tmp_path, mlflow_uri):
    address, right, _ = guarded
    argv = options(small_dataset.path, tmp_path / "run", mlflow_uri, "--num-workers", "1")
    with command(argv, tmp_path / "log", **(right | wrong | {"RAY_ADDRESS": address})) as run:
        assert run.wait() == 2, run.text
    assert f"error: the Ray cluster at RAY_ADDRESS={address} refuses this command's token" in run.text
    assert not (tmp_path / "run").exists()


def test_the_address_that_a_killed_ray_left_is_not_used(small_dataset, tmp_path, mlflow_uri):
    """Ray Train's processes asked there for their own actors, and waited for an answer at the end of each run."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # paths of sockets are short
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        argv = options(small_dataset.path, tmp_path / "run", mlflow_uri, "--num-workers", "1", steps=2)
        with command(argv, tmp_path / "log", RAY_TMPDIR=folder) as run:
            assert run.wait() == 0, run.text
    assert "PlacementGroup" not in run.text and "Traceback" not in run.text, run.text


def test_without_an_address_no_cluster_is_joined(guarded):
    """Even one on this machine, which Ray would find by itself."""
    address, right, tmpdir = guarded
    program = (
        "import ray; from pipelines.rayjobs.cluster import start_ray; start_ray(num_cpus=1, dashboard=False); "
        "print(ray.get_runtime_context().gcs_address, int(ray.cluster_resources()['CPU']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | PATH | right
    environment["RAY_TMPDIR"] = tmpdir  # where Ray would look for its address
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    joined, cpus = done.stdout.split()
    assert joined != address and cpus == "1"
