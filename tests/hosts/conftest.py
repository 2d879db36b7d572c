"""Hosts with Ray, S3 and MLflow for all tests of this folder, and what the commands make there on one host."""

import numpy as np
import pytest
from helpers.faults import WIDE, options
from helpers.ray_hosts import WORKERS, hosts_with_ray

SOUNDS = "s3://sounds/clips"
LABELS = ("bird", "engine", "rain", "siren")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory, migrated_mlflow):
    with hosts_with_ray(tmp_path_factory.mktemp("hosts"), migrated_mlflow, "head", *WORKERS) as made:
        yield made


@pytest.fixture(scope="session")
def sounds(hosts, write_wav):
    """40 synthetic sounds of 0.3 to 2.9 s in the store, in a folder for each of 4 labels."""
    generator = np.random.default_rng(0)
    for i in range(40):
        samples = round(16_000 * (0.3 + 2.6 * (i * 7 % 40) / 39))
        tone = np.sin(2 * np.pi * 300 * 2 ** (i % 4) * np.arange(samples) / 16_000)
        folder = hosts.shared / "sounds" / LABELS[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"clip{i:02d}.wav", 0.3 * tone + generator.normal(0, 0.05, samples))
    hosts.tool("upload", "/mnt/sounds", SOUNDS)
    return SOUNDS


def preprocessing(sounds: str, output: str) -> list[str]:
    shape = ["--clip-frames", "256", "--clips-per-shard", "20", "--labels-from-folders"]
    return ["--source", "folder", "--input", sounds, "--output", output, *shape]


@pytest.fixture(scope="session")
def shards(hosts, sounds):
    """(the dataset that a job made on the hosts, what the job printed)."""
    output = "s3://sounds/shards"
    return output, hosts.job("pipelines/preprocess.py", *preprocessing(sounds, output))


def pretraining(shards: tuple[str, str], output: str, *more: str) -> list[str]:
    """12 steps of two workers, a checkpoint every 5."""
    given = options(shards[0], output, "", *more, width=WIDE)
    at = given.index("--mlflow-uri")
    return [*given[:at], *given[at + 2 :], "--num-workers", "2"]


@pytest.fixture(scope="session")
def run_alone(hosts, shards):
    """A run of two workers on one host, a copy of it in reach of this process."""
    output = "s3://sounds/alone"
    hosts.alone("pipelines/pretrain.py", *pretraining(shards, output))
    return hosts.fetch(output)
