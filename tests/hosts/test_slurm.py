"""cluster/slurm.sh with a real Slurm: a job on two nodes, and one that is queued again in the middle."""

import shlex
import shutil

import numpy as np
import pytest
from helpers.cluster_page import commands, with_other
from helpers.faults import ROOT, WIDE, Holds, assert_same_end, checkpoints, options
from helpers.slurm_hosts import SlurmHosts, missing

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, small_dataset, migrated_mlflow):
    if reason := missing():
        pytest.skip(reason)
    made = SlurmHosts(tmp_path_factory.mktemp("slurm"))
    try:
        shutil.copytree(small_dataset.path, made.shared / "shards")
        shutil.copy(migrated_mlflow, made.shared / "mlflow.db")
        yield made
    finally:
        made.close()


def pretraining(output: str) -> list[str]:
    return [*options("/mnt/shards", f"/mnt/{output}", "sqlite:////mnt/mlflow.db", width=WIDE), "--num-workers", "2"]


@pytest.fixture(scope="module")
def run_alone(slurm):
    """A run of two workers on one host, without Slurm."""
    slurm.run("control", ["python", "pipelines/pretrain.py", *pretraining("alone")], cwd=str(ROOT))
    return slurm.shared / "alone"


def test_a_job_on_two_nodes(slurm, run_alone):
    command = ["--nodes=2", "cluster/slurm.sh", "python", "pipelines/pretrain.py", *pretraining("two")]
    with slurm.submit(*command, name="two") as (_, job):
        assert job.wait() == 0, job.text
    assert "2 nodes joined Ray" in job.text
    assert_same_end(slurm.shared / "two", run_alone)


def test_a_job_that_is_queued_again_goes_on(slurm, run_alone):
    holds = Holds(slurm.shared / "holds", 8)
    program = ["python", "tests/helpers/held_pretrain.py", "/mnt/holds", *pretraining("again")]
    with slurm.submit("--nodes=2", "--requeue", "cluster/slurm.sh", *program, name="again") as (number, job):
        job.wait_for(lambda: holds.reached(8), "step 8")
        slurm.run("control", ["scontrol", "requeue", number])
        holds.release(8)
        assert job.wait() == 0, job.text
    assert job.text.count("2 nodes joined Ray") == 2
    assert "resuming at step" in job.text
    assert_same_end(slurm.shared / "again", run_alone)


def test_before_the_time_limit_a_job_writes_a_checkpoint(slurm, run_alone):
    """The signal that Slurm sends then, sent now."""
    holds = Holds(slurm.shared / "limit-holds", 8)
    program = ["python", "tests/helpers/held_pretrain.py", "/mnt/limit-holds", *pretraining("limit")]
    with slurm.submit("--nodes=2", "cluster/slurm.sh", *program, name="limit") as (number, job):
        job.wait_for(lambda: holds.reached(8), "step 8")
        slurm.run("control", ["scancel", "--batch", "--signal=USR1", number])
        assert job.wait() == 143, job.text
    assert checkpoints(slurm.shared / "limit")[-1] in (8, 9)


def test_the_jobs_of_the_readme(slurm, write_wav):
    """As they stand there but for the shared folder's path, and for sizes that need GPUs."""
    for i in range(8):
        folder = slurm.shared / "audio" / f"take{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{i}.wav", np.random.default_rng(i).normal(0, 0.1, 8_000 + 1_000 * i))
    preprocess, pretrain = (
        line.replace("/shared/", "/mnt/readme/").replace("/mnt/readme/audio", "/mnt/audio")
        for line in commands("Slurm", "sbatch")
    )
    with slurm.submit(*shlex.split(preprocess)[1:], name="preprocess") as (_, job):
        assert job.wait() == 0, job.text
    assert "8 clips ok, 0 bad" in job.text
    short = "--max-steps 2 --batch-size 8 --threads 1 --no-figures"
    small = with_other(pretrain, gpus_per_node=None, preset="nano", num_workers="2", device="cpu")
    with slurm.submit(*shlex.split(f"{small} {short}")[1:], name="pretrain") as (_, job):
        assert job.wait() == 0, job.text
    assert "2 nodes joined Ray" in job.text and "2 steps in" in job.text
    assert checkpoints(slurm.shared / "readme" / "runs" / "base") == [2]
