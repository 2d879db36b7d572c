"""Training clips from a store for two workers: a set that the cache does not hold, with latency and without.

Run with `make bench`. The clips are listed ten times over, so the store holds a tenth of the 2.5 GiB.
"""

import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.bench_reader import write_clips
from benchmarks.common import say

from ajepa import retries, storage
from ajepa.config import PRESETS, FrontEndConfig
from ajepa.shards.dataset import Shard, ShardDataset, open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.shards.schema import ROW_GROUP
from ajepa.training.timing import seconds_per_step

CONFIG = FrontEndConfig()
CLIPS, SHARD, TIMES = 1_024, 128, 10  # clips in the store; of a shard; how often each is listed
WORKERS, BATCH = 2, 64
CLIP_BYTES = 2 * CONFIG.n_mels * CONFIG.clip_frames
AWAY = 120.0  # seconds
PATIENCE = 1_800  # seconds, for workers that failed
LATE = 0.002  # seconds; a step that waits longer for its batch counts as waiting


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> ShardDataset:
    return write_clips(str(tmp_path_factory.mktemp("store-reader")), CLIPS, SHARD)


@pytest.fixture
def remote(wire, local) -> ShardDataset:
    for name, _ in storage.list_files(local.path):
        with storage.atomic_output(f"s3://sounds/large/{name}") as stream:
            stream.write(Path(local.path, name).read_bytes())
    return listed_again(open_dataset("s3://sounds/large"))


def listed_again(dataset: ShardDataset, times: int = TIMES) -> ShardDataset:
    return dataclasses.replace(dataset, shards=dataset.shards * times, num_clips=dataset.num_clips * times)


def nano_step_seconds() -> float:
    """Of the preset `nano`, as one of two workers takes its share of a batch."""
    torch.set_num_threads(1)
    config = PRESETS["nano"]
    share = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=BATCH // WORKERS))
    return seconds_per_step(share, torch.device("cpu"))


def server_rate(dataset: ShardDataset) -> float:
    """Bytes a second that the server gives to plain readers of whole objects, a few at a time: it is Python, too."""

    def fetch(shard: Shard) -> int:
        with storage.open_input(storage.join(dataset.path, shard.name)) as stream:
            return len(stream.read())

    with ThreadPoolExecutor(4) as pool:
        began = time.perf_counter()
        total = sum(pool.map(fetch, dataset.shards[: CLIPS // SHARD]))
        return total / (time.perf_counter() - began)


def work(path: str, times: int, rank: int, step_seconds: float, half: Any, results: Any) -> None:
    """A worker whose steps take so long, for an epoch: seconds it waits for each batch, and its memory in bytes.

    Args:
        half: an event that is set when half the steps are done.
    """
    dataset = listed_again(open_dataset(path), times)
    steps, before = dataset.num_clips // BATCH, peak_bytes()
    reader = ShardReader(dataset, crop_frames=128, batch_size=BATCH, seed=0, rank=rank, world_size=WORKERS)
    assert not reader._keep_all
    waits, batches = [], reader.batches(0, steps)
    for step in range(steps):
        if step == steps // 2:
            half.set()
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
        time.sleep(step_seconds)
    batches.close()
    results.put((waits, peak_bytes() - before))


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def run_workers(
    path: str, times: int, step_seconds: float, at_half: Callable[[], None] = lambda: None
) -> tuple[list[float], int]:
    """Waits of all workers, those for the first batch apart, and the memory of the largest."""
    context = multiprocessing.get_context("spawn")
    results, half = context.Queue(), context.Event()
    workers = [context.Process(target=work, args=(path, times, r, step_seconds, half, results)) for r in range(WORKERS)]
    for worker in workers:
        worker.start()
    assert half.wait(PATIENCE)
    at_half()
    found = [results.get(timeout=PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    print(f"\nfirst batch after {max(waits[0] for waits, _ in found):.1f} s")
    return [wait for waits, _ in found for wait in waits[1:]], max(memory for _, memory in found)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_an_epoch_from_a_store(remote, wire, delay):
    """A step takes what one of `nano` does, and at least four times what the server needs for its bytes."""
    steps, rate = remote.num_clips // BATCH, server_rate(remote)
    step_seconds = max(nano_step_seconds(), 4 * BATCH * CLIP_BYTES / rate)
    wire.delay = delay
    wire.reset_counts()
    waits, memory = run_workers("s3://sounds/large", TIMES, step_seconds)
    groups = remote.num_clips / ROW_GROUP
    what = f"2 workers, {delay * 1e3:.0f} ms a request, steps of {step_seconds:.2f} s"
    say(f"{what}: share of steps that wait", [float(np.mean(np.array(waits) > LATE))], f"longest {max(waits):.2f} s")
    say(f"{what}: share of the time", [sum(waits) / WORKERS / (steps * step_seconds)])
    say(f"{what}: bytes read over bytes of the clips", [wire.answered / (remote.num_clips * CLIP_BYTES)])
    say(f"{what}: requests a row group", [wire.asked.total() / groups], str(dict(wire.asked)))
    say(f"{what}: memory of a reader, GB", [memory / 1e9])
    assert statistics.median(waits) >= 0


def test_a_store_that_is_away_in_the_middle_of_an_epoch(remote, wire, monkeypatch):
    """Both readers wait, go on and end the epoch, of four times as many clips: they read far ahead."""
    monkeypatch.delenv(retries.PATIENCE)  # 0 in tests
    steps = 4 * remote.num_clips // BATCH
    step_seconds = max(nano_step_seconds(), 4 * BATCH * CLIP_BYTES / server_rate(remote))
    wire.reset_counts()

    def outage() -> None:
        wire.break_now()
        time.sleep(AWAY)
        wire.mend()

    waits, memory = run_workers("s3://sounds/large", 4 * TIMES, step_seconds, outage)
    what = f"2 workers, the store away for {AWAY:.0f} s, steps of {step_seconds:.2f} s"
    say(f"{what}: longest wait of a step, s", [max(waits)])
    say(f"{what}: steps that wait for more than 1 s", [sum(wait > 1 for wait in waits) / WORKERS], "a worker")
    say(f"{what}: time lost over the time away", [sum(waits) / WORKERS / AWAY])
    say(f"{what}: bytes read over bytes of the clips", [wire.answered / (steps * BATCH * CLIP_BYTES)])
    say(f"{what}: memory of a reader, GB", [memory / 1e9])
    assert len(waits) == WORKERS * (steps - 1)
