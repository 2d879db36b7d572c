"""The reader against copying and reading the same bytes; its memory, its epochs, and two worker processes.

Run with `make bench`. AJEPA_BENCH_CLIPS clips of 256 KiB lie on disk for a while; the page cache is warm.
"""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.common import CLIPS, ROUNDS, paired, say, seconds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import Shard, ShardDataset, finish_dataset
from ajepa.shards.order import epoch_order
from ajepa.shards.reader import ShardReader
from ajepa.shards.schema import OK, ROW_GROUP, encode_row, ok_schema
from ajepa.shards.writer import shard_path

CONFIG = FrontEndConfig()
BATCH, SHARD = 256, 500
STEPS = CLIPS // BATCH  # of a round
TRAINING = 1_500  # clips a second that a fast GPU takes of the `base` preset
KNOBS = {"crop_frames": CONFIG.clip_frames, "batch_size": BATCH, "seed": 0}


def write_clips(output: str, clips: int, shard: int) -> ShardDataset:
    """Clips of 10 s (1,001 valid frames of 1,024), made without audio, in shards of `shard`."""
    storage.make_folder(storage.join(output, OK))
    schema = ok_schema(CONFIG)
    values = np.random.default_rng(0).normal(-4, 3, (128, 1001)).astype(np.float32)
    for index, start in enumerate(range(0, clips, shard)):
        with pq.ParquetWriter(
            shard_path(output, OK, index), schema, compression="none", use_dictionary=False
        ) as parquet:
            stop = min(start + shard, clips)
            for first in range(start, stop, ROW_GROUP):
                rows = []
                for clip in range(first, min(first + ROW_GROUP, stop)):
                    values[:, 0] = clip
                    rows.append({"clip_id": f"{clip:07d}", "labels": []} | encode_row(values, CONFIG))
                parquet.write_table(pa.Table.from_pylist(rows, schema))
    return finish_dataset(output, CONFIG, [], clips, {})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> ShardDataset:
    """CLIPS clips of 10 s in shards of 500."""
    return write_clips(str(tmp_path_factory.mktemp("reader")), CLIPS, SHARD)


@pytest.fixture(scope="module")
def large(dataset) -> ShardDataset:
    """The same shards 20 times over, so that the row groups in use are few of all."""
    return dataclasses.replace(dataset, shards=dataset.shards * 20, num_clips=dataset.num_clips * 20)


def go_on(reader: ShardReader, rounds: int = 1) -> None:
    """The next batches, which are let go of at once."""
    for _ in reader.batches(reader.step, reader.step + rounds * STEPS):
        pass


def uncached(dataset: ShardDataset, **options) -> ShardReader:
    return ShardReader(dataset, **(KNOBS | {"cache_bytes": 0, "verify": False} | options))


def read_files(dataset: ShardDataset) -> None:
    """read() of as many clips into one buffer of a row group's size."""
    buffer = bytearray(16 << 20)
    for shard in dataset.shards[: CLIPS // SHARD]:
        with Path(dataset.path, shard.name).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def copy_batches() -> None:
    """memcpy of an epoch's bytes, from one batch to another."""
    source = np.ones((BATCH, 128, CONFIG.clip_frames), np.float16)
    target = np.ones_like(source)
    for _ in range(STEPS):
        np.copyto(target, source)


@pytest.mark.parametrize("threads", [1, 2])
def test_from_shards(large, threads):
    reader = uncached(large, threads=threads)
    own, ratios = paired(lambda: go_on(reader), lambda: read_files(large))
    note = f"{STEPS * BATCH / own:.0f} clips/s without digests, {threads} threads"
    say("reader from shards, share of the speed of read() of the files", ratios, note)
    _, ratios = paired(lambda: go_on(reader), copy_batches)
    say("reader from shards, share of the speed of memcpy", ratios)


def test_from_shards_with_every_digest_checked(large):
    reader = uncached(large, verify=True)
    own, ratios = paired(lambda: go_on(reader), lambda: read_files(large))
    note = f"{STEPS * BATCH / own:.0f} clips/s, 2 threads"
    say("reader in its first epoch, share of the speed of read() of the files", ratios, note)


@pytest.mark.parametrize("crop", [128, CONFIG.clip_frames])
def test_from_memory(dataset, crop):
    reader = ShardReader(dataset, **(KNOBS | {"cache_bytes": 1 << 40, "verify": False, "crop_frames": crop}))
    go_on(reader)
    source = reader.batch(0).log_mel.copy()
    target = source.copy()

    def copy() -> None:
        for _ in range(STEPS):
            np.copyto(target, source)

    own, ratios = paired(lambda: go_on(reader), copy)
    say(f"reader from memory, crops of {crop}, share of memcpy", ratios, f"{STEPS * BATCH / own:.0f} clips/s")


@pytest.mark.parametrize("clips_a_second", [TRAINING, None])
def test_the_first_batch_of_an_epoch(large, clips_a_second):
    """Seconds that next() waits for the batch an epoch begins in, and the median of those around it."""
    first, others = [], []
    begins = large.num_clips // BATCH
    for _ in range(ROUNDS):
        stream = uncached(large).batches(begins - 20, begins + 10)
        next(stream)
        for step in range(begins - 19, begins + 10):
            if clips_a_second:
                time.sleep(BATCH / clips_a_second)
            (first if step == begins else others).append(seconds(stream.__next__))
        stream.close()
    taken = f"{clips_a_second} clips/s taken" if clips_a_second else "taken at full speed"
    say(f"first batch of an epoch, s, {taken}", first, f"others {statistics.median(others):.3f}")


def two_million() -> ShardDataset:
    """What dataset.json says of 2,000,000 clips; there are no files."""
    shards = tuple(Shard(f"shard-{i}", SHARD) for i in range(4_000))
    statistics_ = Statistics(np.zeros(128), np.ones(128), 1)
    return ShardDataset("", CONFIG, statistics_, (), shards, 4_000 * SHARD, 0, 0.0, "", {})


def test_two_million_clips():
    dataset = two_million()
    rows = np.arange(dataset.num_clips)
    groups = rows // SHARD * 8 + rows % SHARD // ROW_GROUP
    say(
        "order of an epoch of 2,000,000 clips, s",
        [seconds(lambda: epoch_order(0, 1, rows, groups, 64)) for _ in range(3)],
    )
    start = [seconds(lambda: ShardReader(dataset, **KNOBS)._share(0)) for _ in range(3)]
    say("a reader of 2,000,000 clips, to its first rows, s", start)


@pytest.mark.parametrize(("world_size", "batch"), [(8, 256), (8, 1024), (3, 256), (8, 250), (8, 32)])
def test_bytes_read_by_all_ranks(world_size, batch):
    """Row groups that a rank asks for and did not ask for lately, 5% of an epoch of 2,000,000 clips."""
    dataset = two_million()
    read, steps = 0, dataset.num_clips // 20 // batch
    for rank in range(world_size):
        reader = ShardReader(dataset, **(KNOBS | {"batch_size": batch}), rank=rank, world_size=world_size)
        asked: dict[int, int] = {}
        for step in range(steps):
            for group in np.unique(reader._source.group_of(reader._share(step)[0])).tolist():
                if step - asked.get(group, -step - 99) > -(-2 * reader.window // batch):
                    read += int(reader._source.sizes[group])
                asked[group] = step
    # Those in use at either end of this stretch are counted whole.
    say(f"rows read over rows used, {world_size} ranks, batch {batch}", [(read - 32 * 63) / (steps * batch)])


def measure_memory(dataset: ShardDataset, world_size: int, queue: multiprocessing.Queue) -> None:
    def field(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1e6

    before = field("VmRSS")
    reader = uncached(dataset, rank=world_size // 2, world_size=world_size, verify=True)
    reader.step = dataset.num_clips // BATCH - STEPS
    go_on(reader, 2)
    queue.put(field("VmHWM") - before)


@pytest.mark.parametrize("world_size", [1, 8])
def test_memory(large, world_size):
    """More at the peak of a process than before its reader, over an epoch's end too; no cache."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure_memory, args=(large, world_size, queue))
    process.start()
    say(f"memory of a reader, one of {world_size} ranks, GB", [queue.get()])
    process.join()


class Stream(IterableDataset):
    """What a worker process of a DataLoader reads: its share of every batch, as one of so many ranks."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        reader = uncached(self.dataset, rank=info.id, world_size=info.num_workers, threads=1)
        for batch in reader.batches(0, STEPS):
            yield torch.from_numpy(batch.log_mel)


def test_two_worker_processes(large):
    """Each takes its half of every batch; the start of the processes is not counted."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers, rate in rates.items():
            loader = iter(DataLoader(Stream(large), batch_size=None, num_workers=workers, prefetch_factor=2))
            for _ in range(workers):
                next(loader)
            rate.append((STEPS - 1) * BATCH / seconds(lambda loader=loader: [None for _ in loader]))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    note = f"{statistics.median(rates[2]):.0f} clips/s, best {max(rates[2]):.0f}; {os.cpu_count()} cores"
    say("two worker processes over one", ratios, note)
