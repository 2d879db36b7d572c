"""The preprocess job: speed against a bare pool and one worker, memory, and the start of two million rows.

Run with `make bench`. AJEPA_BENCH_CLIPS and AJEPA_BENCH_ROWS scale it; a clip takes 256 KiB of disk for a while.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import torch
from benchmarks.common import CLIPS, ROUNDS, say, seconds, sound

from ajepa.audio.sources import load_manifest
from ajepa.config import FrontEndConfig
from ajepa.shards.schema import BAD, OK
from ajepa.shards.writer import write_shard
from pipelines.jobs.preprocess import main
from pipelines.preprocess import PreprocessArgs

pytestmark = pytest.mark.timeout(7_200)
ROOT = Path(__file__).parents[2]
ROWS = int(os.environ.get("AJEPA_BENCH_ROWS", "2_000_000"))
SHARD = max(1, CLIPS // 20)  # clips in a shard: at both sizes every one of two workers writes as many


@pytest.fixture
def two_cpus():
    """A Ray of two CPUs in this process."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING")
    yield
    ray.shutdown()


def write_manifest(folder: Path, clips: int, files: list[str]) -> str:
    path = folder / f"{clips}.parquet"
    uris = [files[i % len(files)] for i in range(clips)]
    pq.write_table(pa.table({"clip_id": [f"clip{i:07d}" for i in range(clips)], "uri": uris}), path)
    return str(path)


@pytest.fixture
def manifests(tmp_path):
    """Manifests of CLIPS clips and of a fifth of them, by size: the same 100 stereo FLACs of 10 s at 44.1 kHz."""
    files = [str(tmp_path / f"{i}.flac") for i in range(min(100, CLIPS))]
    for i, file in enumerate(files):
        soundfile.write(file, sound(10, 44_100, 2, i), 44_100)
    yield {clips: write_manifest(tmp_path, clips, files) for clips in (CLIPS, CLIPS // 5)}
    for file in files:
        Path(file).unlink()


def run_job(manifest: str, folder: Path, workers: int) -> float:
    """Seconds of the job, from the manifest to the finished dataset."""
    output = folder / "job"
    args = PreprocessArgs(
        source="manifest", input=manifest, output=str(output), num_workers=workers, clips_per_shard=SHARD,
        mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )  # fmt: skip
    took = seconds(lambda: main(args))
    assert len(list((output / OK).glob("shard-*.parquet"))) == -(
        -load_manifest("manifest", manifest).clips.num_rows // SHARD
    )
    shutil.rmtree(output)
    return took


def run_pool(pool, manifest: str, folder: Path) -> float:
    """Seconds of a pool's processes over the same shards, in the same layout."""
    output = folder / "pool"
    clips = load_manifest("manifest", manifest).clips
    for status in (OK, BAD):
        (output / status).mkdir(parents=True)
    jobs = [  # `take` copies: a slice would be sent with the whole table
        (clips.take(np.arange(start, min(start + SHARD, len(clips)))), i, str(output), FrontEndConfig())
        for i, start in enumerate(range(0, len(clips), SHARD))
    ]
    took = seconds(lambda: pool.starmap(write_shard, jobs, chunksize=1))
    assert len(list((output / OK).iterdir())) == len(jobs)
    shutil.rmtree(output)
    return took


def marginal(run: Callable[[str], float], manifests: dict[int, str]) -> tuple[float, float]:
    """Clips a second between a fifth of the clips and all of them, and the seconds that do not grow with them."""
    few, many = sorted(manifests)
    first, last = run(manifests[few]), run(manifests[many])
    rate = (many - few) / (last - first)
    return rate, first - few / rate


def compare(ours: Callable[[str], float], peer: Callable[[str], float], manifests, rounds: int) -> list[list[tuple]]:
    """(clips a second, fixed seconds) of both, round by round, every second one in the other order."""
    for run in (ours, peer):
        run(manifests[min(manifests)])  # to warm up
    results: list[list[tuple]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            results[which].append(marginal((ours, peer)[which], manifests))
    return results


def medians(result: list[tuple]) -> str:
    rate, fixed = (statistics.median(column) for column in zip(*result, strict=True))
    return f"{rate:.1f} clips/s and {fixed:.1f} s once"


def test_job_against_a_bare_pool(two_cpus, manifests, tmp_path):
    """The pool pays for nothing but the shards; the job also for Ray, progress, MLflow and the finished dataset."""
    with multiprocessing.get_context("spawn").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        job, bare = compare(lambda m: run_job(m, tmp_path, 2), lambda m: run_pool(pool, m, tmp_path), manifests, ROUNDS)
    ratios = [a / b for (a, _), (b, _) in zip(job, bare, strict=True)]
    say("job, share of a bare pool's marginal clips/s", ratios, f"job {medians(job)}, pool {medians(bare)}")
    assert min(ratios) > 0


def test_two_workers_against_one(two_cpus, manifests, tmp_path):
    two, one = compare(lambda m: run_job(m, tmp_path, 2), lambda m: run_job(m, tmp_path, 1), manifests, 3)
    ratios = [a / b for (a, _), (b, _) in zip(two, one, strict=True)]
    say("marginal clips/s of two workers over one", ratios, f"two {medians(two)}, one {medians(one)}")
    assert min(ratios) > 0


@contextlib.contextmanager
def command(*options: str, log: Path) -> Iterator[subprocess.Popen]:
    """The job as a command of its own, with a Ray of its own; whatever of it is left in the end is killed."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "pipelines/preprocess.py", "--source", "manifest", *options],
            cwd=ROOT, env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a process from a later one of the same id
                child.kill()


def private(process: psutil.Process) -> int:
    """RSS less its shared pages, in bytes: workers map the object store and torch's libraries, which all of them
    share. Next to a read of smaps (USS) it costs nothing and does not hold up the process."""
    memory = process.memory_info()
    return memory.rss - memory.shared


def peaks(manifest: str, folder: Path) -> dict[str, int]:
    """Peak private bytes of the driver and of its fattest Ray worker, over a whole job."""
    highest: dict[str, int] = defaultdict(int)
    output, log = folder / "shards", folder / "log.txt"
    options = ["--input", manifest, "--output", str(output), "--clip-frames", "1024", "--num-workers", "2"]
    with command(*options, "--mlflow-uri", f"sqlite:///{folder / 'mlflow.db'}", log=log) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                highest["driver"] = max(highest["driver"], private(driver))
                for child in driver.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        if " ".join(child.cmdline()).startswith("ray::"):
                            highest["worker"] = max(highest["worker"], private(child))
            time.sleep(0.1)
    assert process.returncode == 0, log.read_text()
    shutil.rmtree(output)
    return highest


def test_memory_is_flat(tmp_path):
    files = [str(tmp_path / f"{i}.wav") for i in range(50)]
    for i, file in enumerate(files):
        soundfile.write(file, sound(2, 16_000, 1, i), 16_000)
    sizes = (CLIPS // 5, 2 * CLIPS)
    few, many = (peaks(write_manifest(tmp_path, clips, files), tmp_path) for clips in sizes)
    for who in ("driver", "worker"):
        note = f"{few[who] / 1e9:.3f} and {many[who] / 1e9:.3f} GB, RSS less shared pages"
        say(f"peak memory of a {who} at {sizes[1]} clips over {sizes[0]}", [many[who] / few[who]], note)
        assert min(few[who], many[who]) > 0


def write_rows(path: Path, rows: int) -> None:
    """A manifest the size of AudioSet: segments of videos that are not there, with one to three of 527 labels."""
    generator = np.random.default_rng(0)
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", "S1")
    videos = pa.array(generator.choice(letters, (rows, 11)).view("S11").ravel().astype("U11"))
    start = 10.0 * generator.integers(0, 60, rows)
    offsets = pa.array((1_000 * start).astype(int)).cast(pa.string())
    folders = pc.utf8_lpad(pa.array(generator.integers(0, 1_000, rows)).cast(pa.string()), 3, "0")
    ends = np.r_[0, np.cumsum(generator.integers(1, 4, rows))]
    names = pa.array([f"Sound event number {i}" for i in range(527)]).take(
        pa.array(generator.integers(0, 527, ends[-1]))
    )
    splits = pa.array(["unbalanced_train", "balanced_train", "eval"]).take(pa.array(generator.integers(0, 3, rows)))
    # A list of which no file exists is refused: the first is the list itself.
    uris = pc.binary_join_element_wise("/nowhere", folders, pc.binary_join_element_wise(videos, "flac", "."), "/")
    columns = {
        "clip_id": pc.binary_join_element_wise(videos, offsets, "_"),
        "uri": pa.concat_arrays([pa.array([str(path)]), uris.slice(1)]),
        "start_s": start,
        "duration_s": np.full(rows, 10.0),
        "split": splits,
        "labels": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), names),
    }
    pq.write_table(pa.table(columns), path)


def test_two_million_rows(tmp_path):
    """From the command's start to its first finished shard. No file is there, so that shard itself takes little."""
    manifest, output, log = tmp_path / "rows.parquet", tmp_path / "shards", tmp_path / "log.txt"
    write_rows(manifest, ROWS)
    plan: dict = {}
    start = time.perf_counter()
    options = ["--input", str(manifest), "--output", str(output), "--mlflow-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with command(*options, log=log) as process:
        while not list((output / OK).glob("shard-*.parquet")):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(FileNotFoundError):
                plan = plan or json.loads((output / "_plan/plan.json").read_text())
            time.sleep(0.02)
        took = time.perf_counter() - start
        # Not getrusage's maximum, which a process inherits over fork and exec from the one that starts it.
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    shutil.rmtree(output)
    shards = -(-plan["clips"] // plan["shard_size"])
    note = f"s; the driver's peak RSS {peak / 1e9:.2f} GB, {shards} shards planned"
    say(f"{ROWS} rows, from the start to the first shard", [took], note)
    assert plan["clips"] == ROWS and took > 0 and peak > 0
