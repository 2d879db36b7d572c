"""Preprocessing on two hosts of one CPU each against one such host, all of them on this machine (see `helpers.hosts`):
as root on Linux. Run with `make bench`.
"""

import shutil
import statistics
import time

import pytest
import soundfile
from benchmarks.bench_preprocess import write_manifest
from benchmarks.common import CLIPS, say, sound
from helpers.ray_hosts import hosts_with_ray

pytestmark = pytest.mark.timeout(7_200)
ROUNDS = 3
SIZES = CLIPS // 10, CLIPS // 2  # what does not grow with the clips, as the start of a job, is no share of the rate
SHARDS = 20


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
