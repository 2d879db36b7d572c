"""What the plan of cluster/scale.md rests on: the reader of 64 ranks over 4,000 shards, the planner at ten million
clips, the controller with 64 workers, the size of shards and checkpoints. No step is computed.

Run with `make bench`. Clips are tiny, their number and their row groups are those of the real thing.
"""

import dataclasses
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.bench_preprocess import write_rows
from benchmarks.bench_reader import write_clips
from benchmarks.bench_step import make_config, make_state
from benchmarks.common import say, seconds
from helpers.reader_data import write_shards

from ajepa import storage
from ajepa.audio.blocks import block_sizes
from ajepa.audio.sources import load_manifest
from ajepa.audio.statistics import Statistics
from ajepa.checkpoints import write_checkpoint
from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.shards.row_groups import RowGroup
from ajepa.shards.schema import ROW_GROUP
from ajepa.training.snapshot import snapshot
from pipelines.rayjobs.plan import SHARDS, make_plan, prepare_output, read_block
from pipelines.tracking.reporter import Reporter

RANKS, BATCH = 64, 64 * 128
ROWS = 10_000_000


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def apart(function: Any, *arguments: Any) -> Any:
    """What a function puts into its queue, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


@pytest.fixture(scope="module")
def two_million(tmp_path_factory) -> ShardDataset:
    """4,000 shards of 500 tiny clips: one real shard, listed 4,000 times."""
    one = write_shards(str(tmp_path_factory.mktemp("scale") / "shards"), (500,))
    return dataclasses.replace(one, shards=one.shards * 4_000, num_clips=500 * 4_000)


def rank_of(dataset: ShardDataset, rank: int, batch: int, ranks: int = RANKS, **options: Any) -> ShardReader:
    return ShardReader(
        dataset, **({"crop_frames": 16, "batch_size": batch, "seed": 0, "cache_bytes": 0, "verify": False} | options),
        rank=rank, world_size=ranks,
    )  # fmt: skip


@pytest.mark.parametrize("batch", [64 * 32, BATCH])
def test_64_readers_of_4_000_shards(two_million, batch):
    """A twentieth of an epoch, read by all ranks one after another."""
    steps = two_million.num_clips // 20 // batch
    read, held, used = 0, [], steps * batch
    starts, rates = [], []
    for rank in range(RANKS):
        began = time.perf_counter()
        reader = rank_of(two_million, rank, batch)
        first = reader.batch(0)
        starts.append(time.perf_counter() - began)
        real, groups = reader._groups._make, []
        reader._groups.drop(lambda _: True)
        reader._groups._make = lambda group, real=real, groups=groups: (groups.append(group), real(group))[1]
        began = time.perf_counter()
        held += [len(reader._groups) for _ in reader.batches(0, steps)]
        rates.append(len(first.rows) * steps / (time.perf_counter() - began))
        read += sum(int(reader._source.sizes[group]) for group in groups)
    edges = ROW_GROUP // 2 * 64  # row groups in use at either end of the stretch are counted whole
    what = f"64 ranks over 4,000 shards, batch {batch}"
    say(f"{what}: rows read over rows used", [(read - edges) / used], f"with the ends {read / used:.2f}")
    say(f"{what}: row groups held by a rank", [float(n) for n in held])
    say(f"{what}: seconds to a rank's first batch", starts)
    say(f"{what}: clips/s of a rank, tiny clips", rates)
    assert read >= used - 64 * ROW_GROUP


def measure_rank(dataset: ShardDataset, queue: Any) -> None:
    before = peak_bytes()
    reader = rank_of(dataset, 5, BATCH)
    for _ in reader.batches(dataset.num_clips // BATCH - 3, dataset.num_clips // BATCH + 3):
        pass
    queue.put((peak_bytes() - before) / 1e9)


def test_memory_of_the_orders_of_two_million_clips(two_million):
    say("memory of a rank for the orders of 2,000,000 clips, GB", [apart(measure_rank, two_million) for _ in range(3)])


@pytest.mark.parametrize(("batch", "ranks"), [(256, 8), (1024, 8), (BATCH, 64)])
@pytest.mark.parametrize("late", [False, True], ids=["near", "late"])
def test_a_store_of_50_ms_and_46_mb_a_second(two_million, batch, ranks, late):
    """Steps of one rank that wait where a row group takes 0.41 s, and a GPU takes 1,494 clips/s."""
    reader = rank_of(two_million, 1, batch, ranks, threads=16)
    reader._window = dataclasses.replace(reader._window, late=late)
    real = reader._groups._make

    def slow(group: int) -> RowGroup:
        time.sleep(0.05 + 2 * 128 * 1024 * ROW_GROUP / 46e6)
        return real(group)

    reader._groups._make = slow
    waits, step_seconds = [], batch / ranks / 1_494
    stream = reader.batches(0, round(8 / step_seconds))
    for _ in range(round(8 / step_seconds)):
        waits.append(seconds(lambda: next(stream)))
        time.sleep(step_seconds)
    stream.close()
    share = sum(waits[1:]) / (sum(waits[1:]) + step_seconds * len(waits))
    say(f"{ranks} ranks, batch {batch}, row groups of 0.41 s: share of the time that a rank waits", [share])


def measure_plan(rows: int, path: str, output: str, queue: Any) -> None:
    began = time.process_time()
    manifest = load_manifest("manifest", path)
    plan = make_plan("manifest", path, manifest, None, FrontEndConfig())
    prepare_output(output, SHARDS, plan, manifest, block_sizes(manifest.clips, plan["shard_size"]), False)
    planned = time.process_time() - began
    began = time.process_time()
    read_block(output, rows // plan["shard_size"] - 1)
    read = time.process_time() - began
    queue.put((planned, peak_bytes() / 1e9, read))


def test_the_plan_of_ten_million_clips(tmp_path):
    found = {}
    for rows in (ROWS // 10, ROWS):
        write_rows(tmp_path / f"{rows}.parquet", rows)
        found[rows] = apart(measure_plan, rows, str(tmp_path / f"{rows}.parquet"), str(tmp_path / f"out-{rows}"))
        planned, memory, read = found[rows]
        say(f"plan of {rows:,} clips, s of CPU", [planned], f"{memory:.1f} GB; a task reads its block in {read:.3f} s")
    small, large = found.values()
    say("ten times the clips: times the seconds", [large[0] / small[0]], f"of a task {large[2] / small[2]:.1f}")


REPORT = {
    "step": 1, "loss": 0.1234, "grad_norm": 1.2345, "target_std": 0.31, "prediction_std": 0.22, "lr": 1.5e-4,
    "ema": 0.996, "weight_decay": 0.05, "total_steps": 10**6, "share": 1 / RANKS,
    "averaged": ["loss", "target_std", "prediction_std"],
    "seconds_per_step": 0.1, "clips_per_second": 1500.0, "data_wait": 0.01, "checkpoint_wait": 0.0,
}  # fmt: skip


def test_reports_of_64_workers(tmp_path):
    """What the controller does with each, Ray's own work apart."""
    reporter = Reporter(str(tmp_path), quiet=True)
    reports, rounds = [dict(REPORT) for _ in range(RANKS)], 1_000
    rates = [1 / seconds(lambda: reporter.after_report(None, reports, None), rounds) for _ in range(5)]
    say("reports a second that the controller takes, 64 workers", rates)


def test_the_size_of_a_shard(tmp_path):
    dataset = write_clips(str(tmp_path / "shards"), 500, 500)
    path = Path(dataset.path, dataset.shards[0].name)
    say(
        "bytes of a clip of 10 s in a shard",
        [path.stat().st_size / 500],
        f"footer {pq.read_metadata(path).serialized_size}",
    )


@pytest.mark.parametrize("preset", ["base", "large"])
def test_writing_a_checkpoint(preset, tmp_path):
    """To a disk; and how much of it a plain write of as many bytes takes."""
    state = make_state(make_config(preset, 8), torch.device("cpu"))
    for _, parameter in state.core.trained_parameters():
        state.optimizer.state[parameter] = {
            "step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter),
        }  # fmt: skip
    about = ShardDataset("", FrontEndConfig(), Statistics(np.zeros(128), np.ones(128), 1), (), (), 0, 0, 0.0, "", {})
    shot = snapshot(state, about, {})
    took = [seconds(lambda i=i: write_checkpoint(str(tmp_path / f"{preset}-{i}"), shot)) for i in range(3)]
    size = sum(size for _, size in storage.list_files(str(tmp_path / f"{preset}-0")))
    say(f"{preset}: bytes of a checkpoint", [float(size)])
    say(f"{preset}: MB/s of writing one, digests and fsync included", [size / t / 1e6 for t in took])
    assert statistics.median(took) > 0
