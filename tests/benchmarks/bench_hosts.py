"""Two hosts of one CPU each against one such host in preprocessing, and against one host of two CPUs in training; all
of them on this machine (see `helpers.hosts`): as root on Linux. Run with `make bench`.
"""

import shutil
import statistics
import time
from collections.abc import Callable

import pytest
import soundfile
from benchmarks.bench_preprocess import write_manifest
from benchmarks.bench_reader import write_clips
from benchmarks.common import CLIPS, say, sound
from helpers.ray_hosts import hosts_with_ray

from ajepa.training.run_folder import HISTORY, read_lines

pytestmark = pytest.mark.timeout(7_200)
ROUNDS = 3
SIZES = CLIPS // 10, CLIPS // 2  # what does not grow with the clips, as the start of a job, is no share of the rate
SHARDS = 20
STEPS, REPORT = 60, 5  # of a training; steps of a line of its history


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, migrated_mlflow):
    with hosts_with_ray(tmp_path_factory.mktemp("hosts"), migrated_mlflow, "head", "worker1") as made:
        yield made


@pytest.fixture(scope="module")
def manifests(hosts):
    """Manifests by size: the same 100 stereo FLACs of 10 s at 44.1 kHz, on the file system that all hosts mount."""
    for i in range(100):
        soundfile.write(hosts.shared / f"{i}.flac", sound(10, 44_100, 2, i), 44_100)
    for clips in SIZES:
        write_manifest(hosts.shared, clips, [f"/mnt/{i}.flac" for i in range(100)])
    return {clips: f"/mnt/{clips}.parquet" for clips in SIZES}


def rate(hosts, manifests, workers: int) -> float:
    """Clips a second of a job on all workers that there are."""
    took = []
    for clips, manifest in sorted(manifests.items()):
        shape = ["--clips-per-shard", str(clips // SHARDS), "--num-workers", str(workers)]
        began = time.perf_counter()
        hosts.job(
            "pipelines/preprocess.py", "--source", "manifest", "--input", manifest, "--output", "/mnt/job", *shape
        )
        took.append(time.perf_counter() - began)
        shutil.rmtree(hosts.shared / "job")
    return (max(SIZES) - min(SIZES)) / (took[1] - took[0])


def test_two_hosts_against_one(hosts, manifests):
    rates = []
    for _ in range(ROUNDS):
        one = rate(hosts, manifests, 1)
        hosts.start_ray("worker2")
        hosts.wait_for_nodes("head", "worker1", "worker2")
        two = rate(hosts, manifests, 2)
        hosts.stop_ray("worker2")
        hosts.wait_for_nodes("head", "worker1")
        rates.append((one, two))
    what = [f"{statistics.median(column):.1f} clips/s" for column in zip(*rates, strict=True)]
    say("marginal clips/s of two hosts over one", [two / one for one, two in rates], " and ".join(what))
    assert all(one > 0 for one, _ in rates)


def seconds_per_step(hosts, start: Callable[..., str], name: str) -> float:
    """Median over a training's reports, without the first, which holds its start."""
    shape = ["--preset", "nano", "--batch-size", "32", "--max-steps", str(STEPS), "--log-every", str(REPORT)]
    where = ["--data", "/mnt/clips", "--output", f"/mnt/{name}", "--num-workers", "2", "--threads", "1"]
    start("pipelines/pretrain.py", *where, *shape, "--precision", "fp32", "--no-figures")
    history = read_lines(str(hosts.shared / name / HISTORY))
    found = [report["seconds_per_step"] for report in history if report["step"]]
    assert len(found) == STEPS // REPORT
    shutil.rmtree(hosts.shared / name)
    return statistics.median(found[1:])


def test_steps_on_two_hosts(hosts):
    """A worker on each host against two on one, with the same batch."""
    write_clips(str(hosts.shared / "clips"), 256, 64)
    hosts.start_ray("worker2")
    hosts.wait_for_nodes("head", "worker1", "worker2")
    rounds = [
        (seconds_per_step(hosts, hosts.alone, "one"), seconds_per_step(hosts, hosts.job, "two")) for _ in range(ROUNDS)
    ]
    what = [f"{statistics.median(column):.3f} s" for column in zip(*rounds, strict=True)]
    say("seconds a step of two hosts over one", [two / one for one, two in rounds], " and ".join(what))
