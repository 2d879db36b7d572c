"""Mistakes that only several hosts allow: one line that says what to do, exit code 2, and nothing left behind."""

import pytest
from helpers.faults import ROOT
from helpers.hosts import HOME
from hosts.conftest import preprocessing, pretraining

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]


def refused(hosts, name: str, arguments: list[str], **environment: str) -> str:
    """The one line that pretrain.py ends with on a host."""
    argv = ["python", "pipelines/pretrain.py", *arguments]
    announced, *rest = hosts.run(name, argv, code=2, cwd=str(ROOT), **environment).splitlines()
    assert announced.startswith("pretrain: ")
    rest = [line for line in rest if "InvalidAuthToken" not in line]  # Ray says so once a second, in its own C++
    assert len(rest) == 1 and rest[0].startswith("error: "), "\n".join(rest)
    return rest[0]


def refused_job(hosts, program: str, arguments: list[str]) -> str:
    """The line with which a command ends as a job."""
    printed = hosts.job(f"pipelines/{program}.py", *arguments, code=1)
    assert "Traceback" not in printed
    assert "failed with exit code 2" in printed
    [line] = {line for line in printed.splitlines() if line.startswith("error: ")}  # Ray prints the end twice
    return line


def test_a_wrong_token(hosts, shards):
    address = f"{hosts.address['head']}:6379"
    arguments = pretraining(shards, "s3://sounds/token")
    line = refused(hosts, "worker1", arguments, RAY_ADDRESS=address, RAY_AUTH_TOKEN="0" * 64)
    assert "token" in line
    assert hosts.tool("list", "s3://sounds/token") == ""


def test_a_head_that_is_not_there(hosts, shards):
    arguments = pretraining(shards, "s3://sounds/headless")
    assert "no Ray cluster answers" in refused(hosts, "worker1", arguments, RAY_ADDRESS="10.201.0.99:6379")
    assert hosts.tool("list", "s3://sounds/headless") == ""


def test_a_host_that_is_no_node(hosts, shards):
    address = f"{hosts.address['head']}:6379"
    line = refused(hosts, "client", pretraining(shards, "s3://sounds/nodeless"), RAY_ADDRESS=address)
    assert "ray job submit" in line
    assert hosts.tool("list", "s3://sounds/nodeless") == ""


def test_the_address_of_the_dashboard(hosts, shards):
    arguments = pretraining(shards, "s3://sounds/dashboard")
    assert "ray job submit" in refused(hosts, "client", arguments, RAY_ADDRESS="http://head:8265")


def test_a_bucket_that_does_not_exist(hosts, shards):
    assert "nowhere" in refused_job(hosts, "pretrain", pretraining(shards, "s3://nowhere/run"))


@pytest.mark.parametrize("program", ["pretrain", "preprocess"])
def test_an_output_that_only_one_host_sees(program, hosts, sounds, shards):
    given = {"pretrain": lambda out: pretraining(shards, out), "preprocess": lambda out: preprocessing(sounds, out)}
    line = refused_job(hosts, program, given[program](f"{HOME}/new"))
    assert f"--output '{HOME}/new' is on this machine alone: node worker" in line and "s3://" in line
    assert "new" not in hosts.run("head", ["ls", HOME]).split()


def test_a_node_with_another_version_of_the_project(hosts, shards):
    """As its installation there says."""
    other = hosts.shared / "other" / "ajepa-9.0.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: ajepa\nVersion: 9.0.0\n")
    hosts.stop_ray("worker2")
    hosts.start_ray("worker2", PYTHONPATH=f"/mnt/other:{ROOT}")
    try:
        line = refused_job(hosts, "pretrain", pretraining(shards, "s3://sounds/versions"))
    finally:
        hosts.stop_ray("worker2")
        hosts.start_ray("worker2")
    assert "node worker2 has ajepa 9.0.0, this process " in line and "install the same environment" in line
    assert hosts.tool("list", "s3://sounds/versions") == ""
