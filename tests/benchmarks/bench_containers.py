"""Sound in Parquet files and tar archives: the job beside loose files, bytes read, memory, planning; pieces of MP3s.

Run with `make bench`; AJEPA_BENCH_CLIPS and AJEPA_BENCH_ROWS scale it.
"""

import io
import multiprocessing
import os
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import torch
from benchmarks.bench_preprocess import SHARD, compare, medians
from benchmarks.common import CLIPS, ROUNDS, say, seconds, sound, write_long
from helpers.containers import AUDIO

from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest, make_table
from ajepa.audio.segments import segment
from ajepa.audio.sources import load_manifest
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.schema import BAD, OK
from ajepa.shards.writer import write_shard
from pipelines.jobs.preprocess import main
from pipelines.preprocess import PreprocessArgs
from pipelines.rayjobs.plan import SHARDS, make_plan, prepare_output

pytestmark = pytest.mark.timeout(7_200)
ROWS = int(os.environ.get("AJEPA_BENCH_ROWS", "1_700_000"))
FEW, MANY = CLIPS // 5, CLIPS
GROUP = 100  # rows of a Parquet row group, as the Hub has them
A_FILE = 500  # clips of a Parquet file or an archive
KINDS = ("manifest", "parquet", "webdataset")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """100 FLAC files of 10 s at 48 kHz, mono."""
    found = []
    for i in range(100):
        stream = io.BytesIO()
        soundfile.write(stream, sound(10, 48_000, 1, i), 48_000, format="FLAC")
        found.append(stream.getvalue())
    return found


def write_loose(folder: Path, clips: int, files: list[bytes], _: int = 0) -> str:
    for i in range(clips):
        (folder / f"{i:06d}.flac").write_bytes(files[i % len(files)])
    ids = [f"{i:06d}" for i in range(clips)]
    pq.write_table(pa.table({"clip_id": ids, "uri": [f"{name}.flac" for name in ids]}), folder / "list.parquet")
    return str(folder / "list.parquet")


def write_parquet(folder: Path, clips: int, files: list[bytes], a_file: int = A_FILE) -> str:
    for first in range(0, clips, a_file):
        rows = [{"bytes": files[i % len(files)], "path": None} for i in range(first, min(first + a_file, clips))]
        ids = [f"{first + i:06d}" for i in range(len(rows))]
        table = pa.table({"id": ids, "audio": pa.array(rows, AUDIO)})
        pq.write_table(table, folder / f"{first:06d}.parquet", row_group_size=GROUP)
    return str(folder)


def write_tars(folder: Path, clips: int, files: list[bytes], a_file: int = A_FILE) -> str:
    for first in range(0, clips, a_file):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as archive:
            for i in range(first, min(first + a_file, clips)):
                info = tarfile.TarInfo(f"{i:06d}.flac")
                info.size = len(files[i % len(files)])
                archive.addfile(info, io.BytesIO(files[i % len(files)]))
    return str(folder)


WRITERS: dict[str, Callable[..., str]] = {
    "manifest": write_loose, "parquet": write_parquet, "webdataset": write_tars,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(files, tmp_path_factory) -> Iterator[dict[str, dict[int, str]]]:
    """Inputs of FEW and of MANY clips, by kind of source and size."""
    root = tmp_path_factory.mktemp("inputs")
    found: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for clips in (FEW, MANY):
            folder = root / f"{kind}-{clips}"
            folder.mkdir()
            found[kind][clips] = WRITERS[kind](folder, clips, files)
    yield found
    shutil.rmtree(root)


@pytest.fixture
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING")
    yield
    ray.shutdown()


def run_job(kind: str, path: str, folder: Path) -> float:
    """Seconds of the job, from the source to the finished dataset."""
    output = folder / "job"
    args = PreprocessArgs(
        source=kind, input=path, output=str(output), num_workers=2, clips_per_shard=SHARD,
        mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )  # fmt: skip
    took = seconds(lambda: main(args))
    shutil.rmtree(output)
    return took


def blocks_of(kind: str, path: str, folder: Path) -> list[tuple[pa.Table, int, str, FrontEndConfig]]:
    """What `write_shard` takes for every block of a source."""
    clips = load_manifest(kind, path).clips
    for status in (OK, BAD):
        (folder / status).mkdir(parents=True, exist_ok=True)
    jobs, first = [], 0
    for index, rows in enumerate(block_sizes(clips, SHARD)):
        part = clips.take(np.arange(first, first + rows))  # copies: a slice would be sent with the whole table
        jobs.append((part, index, str(folder), FrontEndConfig()))
        first += rows
    return jobs


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_job_against_loose_files(kind, two_cpus, inputs, tmp_path):
    def run(which: str) -> Callable[[int], float]:
        return lambda clips: run_job(which, inputs[which][int(clips)], tmp_path)

    sizes: Any = {FEW: FEW, MANY: MANY}
    ours, loose = compare(run(kind), run("manifest"), sizes, ROUNDS)
    ratios = [a / b for (a, _), (b, _) in zip(ours, loose, strict=True)]
    say(f"job from {kind}, share of loose files' marginal clips/s", ratios, f"{medians(ours)}, loose {medians(loose)}")
    assert min(ratios) > 0


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_job_against_a_bare_pool_over_loose_files(kind, two_cpus, inputs, tmp_path):
    def run_pool(clips: int) -> float:
        jobs = blocks_of("manifest", inputs["manifest"][clips], tmp_path / "pool")
        took = seconds(lambda: pool.starmap(write_shard, jobs, chunksize=1))
        shutil.rmtree(tmp_path / "pool")
        return took

    sizes: Any = {FEW: FEW, MANY: MANY}
    with multiprocessing.get_context("spawn").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        job, bare = compare(
            lambda clips: run_job(kind, inputs[kind][int(clips)], tmp_path),
            lambda clips: run_pool(int(clips)),
            sizes,
            ROUNDS,
        )
    ratios = [a / b for (a, _), (b, _) in zip(job, bare, strict=True)]
    say(f"job from {kind}, share of a bare pool's marginal clips/s", ratios, f"{medians(job)}, pool {medians(bare)}")
    assert min(ratios) > 0


def bytes_read() -> int:
    """By this process so far, from files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("store", [False, True], ids=["local", "s3"])
def test_bytes_read(kind, store, files, tmp_path, request):
    """Of a whole job's blocks, and of the half that is left after an interruption."""
    (tmp_path / "in").mkdir()
    # The loopback server copies the whole object for each range that is asked for: objects are smaller there.
    clips, a_file = (600, 100) if store else (1000, A_FILE)
    path = WRITERS[kind](tmp_path / "in", clips, files, a_file)
    if store:
        s3, _ = request.getfixturevalue("s3"), request.getfixturevalue("wire")
        for file in sorted((tmp_path / "in").iterdir()):
            s3.Object(f"{kind}/{file.name}").put(Body=file.read_bytes())
        path = path.replace(str(tmp_path / "in"), f"s3://sounds/{kind}")
    jobs = blocks_of(kind, path, tmp_path / "out")
    for job in jobs[:2]:  # what is read once: modules, filterbanks
        write_shard(*job)
    count = (lambda: request.getfixturevalue("wire").answered) if store else bytes_read
    for what, part in (("all", jobs), ("half", jobs[len(jobs) // 2 :])):
        before = count()
        for job in part:
            write_shard(*job)
        read = count() - before
        clips = sum(len(job[0]) for job in part)
        audio = sum(len(files[i % 100]) for i in range(clips))
        say(
            f"{kind}, {'s3' if store else 'local'}, {what} of the blocks: bytes read over those of the sound",
            [read / audio],
        )
        assert read > 0.9 * audio


def run_and_measure(jobs: list[Any], queue: Any) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    results = [write_shard(*job) for job in jobs]
    took = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    queue.put((sum(r.ok for r in results), sum(r.bad for r in results), peak / 1e9, took))


def in_a_process(what: str, jobs: list[Any]) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run_and_measure, args=(jobs, queue))
    process.start()
    ok, bad, peak, took = queue.get(timeout=3_000)
    process.join()
    say(f"peak memory of a worker, {what}", [peak], f"GB; {ok} ok, {bad} bad, {took:.1f} s")
    assert ok > 0


@pytest.mark.parametrize("rows", [2_000, 200])
def test_memory_of_a_row_group_of_2_gb(rows, files, tmp_path):
    """All of it one row group; the rows are as large as that makes them, zeros after the sound."""
    size = (2 << 30) // rows
    schema = pa.schema([("id", pa.string()), ("audio", AUDIO)])
    path = tmp_path / "a.parquet"
    data = [{"bytes": files[i % 100][:size].ljust(size, b"\0"), "path": None} for i in range(100)]
    audio = pa.array([data[i % 100] for i in range(rows)], AUDIO)
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_table(pa.table({"id": [f"{i}" for i in range(rows)], "audio": audio}, schema), row_group_size=rows)
    del audio, data
    if rows < 1_000:  # one page
        with pytest.raises(
            UserError, match="which a worker would have to hold: write it again with row_group_size="
        ) as e:
            blocks_of("parquet", str(path), tmp_path / "out")
        print(f"\none row group of 2 GB and {rows} rows is refused: {e.value}")
        return
    in_a_process(f"one row group of 2 GB and {rows} rows", blocks_of("parquet", str(path), tmp_path / "out")[:1])


def test_memory_of_a_tar_of_20_gb(files, tmp_path):
    """Twenty members of 1 GB, of which all but the sound is a hole."""
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        for i in range(20):
            info = tarfile.TarInfo(f"{i}.flac")
            info.size = 1 << 30
            stream.write(info.tobuf())
            stream.write(files[i])
            stream.seek((1 << 30) - len(files[i]), io.SEEK_CUR)
        stream.write(bytes(1024))
    in_a_process("a tar of 20 GB", blocks_of("webdataset", str(path), tmp_path / "out"))


def plan_and_measure(kind: str, path: str, output: str, queue: Any) -> None:
    start = time.perf_counter()
    manifest = load_manifest(kind, path)  # type: ignore[arg-type]
    listed = time.perf_counter() - start
    plan = make_plan(kind, path, manifest, None, FrontEndConfig())
    prepare_output(output, SHARDS, plan, manifest, block_sizes(manifest.clips, plan["shard_size"]), False)
    took = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    queue.put((manifest.clips.num_rows, listed, took, peak / 1e9))


def planned(kind: str, path: str, output: Path) -> tuple[int, float, float, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=plan_and_measure, args=(kind, path, str(output), queue))
    process.start()
    found = queue.get(timeout=3_000)
    process.join()
    return found


def test_planning_of_audioset(tmp_path):
    """AudioSet's schema on the Hub, a thousand clips a file; sounds of a few bytes, which planning does not read."""
    generator = np.random.default_rng(0)
    mids = np.array([f"/m/{i:06x}" for i in range(527)])
    for number in range(max(1, ROWS // 1000)):
        labels = [mids[generator.integers(0, 527, 2)].tolist() for _ in range(1000)]
        ids = [f"{number:05d}{i:06d}" for i in range(1000)]
        audio = pa.array([{"bytes": b"x", "path": f"{name}.flac"} for name in ids], AUDIO)
        table = pa.table({"video_id": ids, "audio": audio, "labels": labels, "human_labels": labels})
        pq.write_table(table, tmp_path / f"{number:05d}.parquet", row_group_size=GROUP)
    rows, listed, took, peak = planned("parquet", str(tmp_path), tmp_path / "out")
    say(f"planning {rows} rows of Parquet", [took], f"s ({listed:.1f} s to list them); peak {peak:.2f} GB")
    assert rows == 1000 * max(1, ROWS // 1000)


def test_indexing_of_tars(tmp_path):
    members = 20_000
    for number in range(4):
        with (tmp_path / f"{number}.tar").open("wb") as stream:
            for i in range(members // 8):
                for name, size in ((f"{number}-{i}.flac", 300_000), (f"{number}-{i}.json", 20)):
                    info = tarfile.TarInfo(name)
                    info.size = size
                    stream.write(info.tobuf())
                    stream.write(b'{"label": "speech"}'.ljust(20) if size == 20 else b"")
                    stream.seek(-(-size // 512) * 512 - (20 if size == 20 else 0), io.SEEK_CUR)
            stream.write(bytes(1024))
    times = [seconds(lambda: load_manifest("webdataset", str(tmp_path))) for _ in range(ROUNDS)]
    say(f"indexing a tar, ms a member ({members} members)", [1e3 * t / members for t in times])
    assert statistics.median(times) > 0


def test_pieces_of_a_long_mp3(tmp_path):
    """A shard of the pieces of an hour beside one of as many files of that length."""
    write_long(tmp_path / "long.mp3", 3_600, 44_100)
    write_long(tmp_path / "short.mp3", 10, 44_100)
    front_end = FrontEndConfig()
    long = Manifest(make_table(["a"], [str(tmp_path / "long.mp3")], [[]], []), [])
    pieces = segment(long, 10.0, "drop", front_end).clips
    loose = make_table([f"{i:03d}" for i in range(360)], [str(tmp_path / "short.mp3")] * 360, [[]] * 360, [])
    for status in (OK, BAD):
        (tmp_path / status).mkdir()

    def work(clips: pa.Table, size: int) -> float:
        return seconds(
            lambda: [write_shard(clips.slice(at, size), 0, str(tmp_path), front_end) for at in range(0, 360, size)]
        )

    for size in (60, 360):
        ratios = [work(pieces, size) / work(loose, size) for _ in range(ROUNDS)]
        say(f"pieces of an MP3 of one hour, shards of {size}: time over that of loose MP3 files", ratios)
        assert min(ratios) > 0
