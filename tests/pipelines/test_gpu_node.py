"""Work that is done on a node with a GPU. The GPU is only said to be there: the task sees which one it was given."""

import functools
import os
import subprocess
import sys

import pytest
from helpers.faults import PATH

from ajepa.errors import UserError
from pipelines.cli.command import run_command
from pipelines.jobs import probe
from pipelines.probe import parse_args

PROGRAM = """
import functools, os, sys, ray
from ajepa.errors import UserError
from pipelines.cli.command import FailedError
from pipelines.rayjobs.gpu_node import run_on_gpu_node
ray.init(address="local", num_cpus=2, num_gpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR")
def work(kind):
    print("printed by the task", flush=True)
    if kind == "mistake":
        raise UserError("a mistake")
    if kind == "fails":
        raise ValueError("a fault")
    return os.getpid() != driver and os.environ["CUDA_VISIBLE_DEVICES"]
driver = os.getpid()
for kind in ("works", "mistake", "fails"):
    try:
        print(kind, run_on_gpu_node(functools.partial(work, kind), sys.argv[2], int(sys.argv[3]), {}), flush=True)
    except (UserError, FailedError) as error:
        print(kind, type(error).__name__, error, flush=True)
"""


def run(*argv):
    """Lines that the program prints."""
    command = [sys.executable, "-c", PROGRAM, *argv]
    return subprocess.run(
        command, env=os.environ | PATH, capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.ray
def test_the_work_is_done_by_a_task_that_holds_the_gpu():
    lines = run("1", "s3://bucket/probe", "2")
    assert "works 0" in lines and any(line.endswith("printed by the task") for line in lines)
    assert "mistake UserError a mistake" in lines
    assert any(line.startswith("fails FailedError ValueError: a fault (all that Ray logged") for line in lines)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("0", "s3://bucket/probe", "1"), "--device cuda: Ray finds no GPU"),
        (("1", "s3://bucket/probe", "3"), "--threads 3: no node of the cluster has more than 2 CPUs"),
        (("1", "/here/probe", "1"), "--output '/here/probe' has to be a URI"),
    ],
    ids=["no GPU", "few CPUs", "a local output"],
)
def test_what_cannot_work_is_said(argv, message):
    lines = run(*argv)
    assert message in lines[0] and not any("printed by the task" in line for line in lines)


def test_without_a_cluster_there_is_no_other_node(monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(probe.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: probe.main(parse_args(["--encoder", "run", "--data", "shards", "--device", "cuda"])))
    assert stop.value.code == 2 and "--device cuda: there is no GPU here" in capsys.readouterr().err


def test_a_gpu_that_ray_knows_and_torch_does_not_is_said(monkeypatch):
    monkeypatch.setattr(probe.torch.cuda, "is_available", lambda: False)
    args = parse_args(["--encoder", "run", "--data", "shards", "--device", "cuda"])
    with pytest.raises(UserError, match="torch finds no GPU on a node whose GPU Ray knows"):
        functools.partial(probe.probe_here, args, None, None)()
