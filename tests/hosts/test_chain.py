"""Every command as a job on two hosts, which share nothing but a store and MLflow on others: the same results as on one
host."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.faults import assert_same_end
from hosts.conftest import preprocessing, pretraining

from ajepa.checkpoints import latest_checkpoint, read_info
from ajepa.experiments.results import read_results

pytestmark = [pytest.mark.hosts, pytest.mark.process, pytest.mark.xdist_group("hosts")]


@pytest.fixture(scope="module")
def run(hosts, shards):
    """(a run that a job made on both hosts, a copy of it in reach of this process)."""
    output = "s3://sounds/run"
    hosts.job("pipelines/pretrain.py", *pretraining(shards, output))
    return output, hosts.fetch(output)


def by_both(hosts, program: str, output: str, arguments: list[str]) -> list[Path]:
    """What a command writes to OUTPUT/job as a job and to OUTPUT/alone on one host."""
    hosts.job(program, *arguments, "--output", f"{output}/job")
    hosts.alone(program, *arguments, "--output", f"{output}/alone")
    return [hosts.fetch(f"{output}/{name}") for name in ("job", "alone")]


def test_preprocess(hosts, sounds, shards):
    hosts.alone("pipelines/preprocess.py", *preprocessing(sounds, "s3://sounds/shards-alone"))
    ours, theirs = (
        json.loads((hosts.fetch(output) / "dataset.json").read_text())
        for output in (shards[0], "s3://sounds/shards-alone")
    )
    assert ours["content_hash"] == theirs["content_hash"]
    assert ours | {"mlflow_run": ""} == theirs | {"mlflow_run": ""}  # statistics, counts, plan


def test_pretrain(hosts, run, run_alone):
    infos = [assert_same_end(run[1], run_alone), read_info(latest_checkpoint(str(run_alone)))]
    ours, theirs = (json.loads(Path(info.path, "checkpoint.json").read_text())["digests"] for info in infos)
    assert ours == theirs  # weights and optimizer
    assert hosts.mlflow_runs(run[0]) == ["FINISHED"]


def test_probe(hosts, shards, run):
    arguments = ["--encoder", run[0], "--data", shards[0], "--seeds", "1", "--no-figures", "--threads", "1"]
    ours, theirs = by_both(hosts, "pipelines/probe.py", "s3://sounds/probes", arguments)
    assert (ours / "table.csv").read_text() == (theirs / "table.csv").read_text()


def test_finetune(hosts, shards, run):
    """A worker on each host, the test of one fold: the same model, bit for bit."""
    short = ["--epochs", "2", "--warmup-epochs", "1", "--batch-size", "8", "--fold", "0", "--no-probe"]
    arguments = ["--encoder", run[0], "--data", shards[0], "--num-workers", "2", "--threads", "1", *short]
    folders = by_both(hosts, "pipelines/finetune.py", "s3://sounds/finetuned", arguments)
    ours, theirs = ({path.relative_to(folder): path.read_bytes() for path in folder.rglob("model/*.safetensors")}
                    for folder in folders)  # fmt: skip
    assert ours and ours == theirs  # encoder and head
    scores = [json.loads((folder / "results.json").read_text())["scores"] for folder in folders]
    assert scores[0] == scores[1]


def test_embed(hosts, sounds, run):
    arguments = ["--encoder", run[0], "--input", sounds, "--clips-per-part", "10"]
    folders = by_both(hosts, "pipelines/embed.py", "s3://sounds/embeddings", arguments)
    ours, theirs = (pq.read_table(folder / "status=ok").sort_by("clip_id") for folder in folders)
    assert ours["clip_id"] == theirs["clip_id"]
    np.testing.assert_allclose(ours["embedding"].to_pylist(), theirs["embedding"].to_pylist(), rtol=0, atol=1e-5)


def test_ablate(hosts, shards, run):
    """Two trials, one on each host."""
    arguments = ["masking_ratio", "--values", "0.5", "0.7", "--seeds", "1", "--max-steps", "4", "--protocol", "knn",
                 "--data", shards[0], "--config", f"{run[0]}/run.json"]  # fmt: skip
    folders = by_both(hosts, "pipelines/ablate.py", "s3://sounds/tables", arguments)
    ours, theirs = (
        {
            (name, seed): {(s["protocol"], s["pooling"]): s["score"] for s in outcome["scores"]}
            for name, result in read_results(str(folder / "results")).items()
            for seed, outcome in result.seeds.items()
        }
        for folder in folders
    )
    assert len(ours) == 4 and ours == theirs  # two settings, random initialisation, log-mel statistics
    assert all(list((folder / "tables").glob("*.md")) for folder in folders)
