"""One thread's work on a clip: where the time goes, clips cut out of long files, and damaged files.

Run with `make bench`; AJEPA_BENCH_CLIPS scales it.
"""

import contextlib
import multiprocessing
import os
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from benchmarks.common import CLIPS, paired, say, sound, write_long
from helpers.encoded import encoded

from ajepa import storage
from ajepa.audio.collector import resample
from ajepa.audio.decode import decode
from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel
from ajepa.config import FrontEndConfig
from ajepa.shards.schema import ROW_GROUP, encode_row, ok_schema

pytestmark = pytest.mark.timeout(7_200)
T = TypeVar("T")
RATE = 16_000

FORMATS = {  # file name: (seconds, rate, channels)
    "10 s 44.1 kHz stereo 16-bit.wav": (10, 44_100, 2),
    "10 s 44.1 kHz stereo.flac": (10, 44_100, 2),
    "10 s 16 kHz mono.wav": (10, 16_000, 1),
    "5 s 44.1 kHz mono Vorbis.ogg": (5, 44_100, 1),
}
SPLIT_CLIPS = 20


class Stages:
    """Seconds of each stage, clip by clip; a line of a Markdown table in the end."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def time(self, stage: str, work: Callable[..., T], *args: object, per: int = 1) -> T:
        start = time.perf_counter()
        result = work(*args)
        self.times.setdefault(stage, []).append((time.perf_counter() - start) / per)
        return result

    def head(self) -> str:
        names = [*self.times, "sum of medians"]
        return f"\n| ms a clip | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}"

    def line(self, what: str) -> str:
        cells = [
            f"{1e3 * statistics.median(t):.2f} ({1e3 * min(t):.2f} to {1e3 * max(t):.2f})" for t in self.times.values()
        ]
        whole = 1e3 * sum(statistics.median(t) for t in self.times.values())
        return f"| {what} | {' | '.join(cells)} | {whole:.2f} |"


def split_log_mel(front_end: LogMel, waveform: torch.Tensor, stages: Stages) -> torch.Tensor:
    """LogMel.forward of one clip, restated in its parts."""
    config, half = front_end.config, front_end.config.n_fft // 2

    def frame() -> torch.Tensor:
        flat = waveform.reshape(1, -1)
        mirrored = torch.cat([flat[:, 1 : half + 1].flip(1), flat, flat[:, -half - 1 : -1].flip(1)], dim=1)
        return mirrored.unfold(-1, config.n_fft, config.hop_length) * front_end.window

    def filter_all() -> torch.Tensor:
        mel = squares.new_empty(config.n_mels, squares.shape[0])
        for first, last, low, high in front_end.bands:
            torch.mm(front_end.filters[first:last, low:high], squares[:, low:high].T, out=mel[first:last])
        return mel

    frames = stages.time("mirror, frame, window", frame)
    spectrum = stages.time("real FFT", lambda: torch.fft.rfft(frames))
    squares = stages.time("squares", lambda: torch.view_as_real(spectrum).square_().flatten(2))[0]
    mel = stages.time("filterbank", filter_all)
    return stages.time("log", lambda: mel.add_(config.log_epsilon).log_())


def write_group(rows: list[dict], schema: pa.Schema, path: str) -> None:
    """A shard of one row group, synced and renamed as the job does it."""
    with storage.atomic_output(path) as stream:
        pq.write_table(pa.Table.from_pylist(rows, schema), stream, compression="none", use_dictionary=False)


@torch.inference_mode()
def test_split_of_a_clip(tmp_path):
    torch.set_num_threads(1)
    config = FrontEndConfig()
    front_end, schema = LogMel(config), ok_schema(config)
    tables: dict[str, tuple[Stages, Stages]] = {}
    for name, (length, rate, channels) in FORMATS.items():
        stages, parts = tables[name] = Stages(), Stages()
        rows = []
        for i in range(-2, SPLIT_CLIPS):  # two to warm up
            path = tmp_path / f"{i} {name}"
            soundfile.write(path, sound(length, rate, channels, i + 2), rate)
            kept, kept_parts = (stages, parts) if i >= 0 else (Stages(), Stages())
            decoded = kept.time("open, decode", decode, str(path), rate, 0.0, 10.24)
            waveform = kept.time("resample", resample, decoded.waveform, rate, RATE)
            tensor = torch.from_numpy(np.ascontiguousarray(waveform))
            log_mel = kept.time("LogMel", front_end, tensor)
            assert torch.equal(split_log_mel(front_end, tensor, kept_parts), log_mel)
            row = kept.time("encode_row", encode_row, log_mel.numpy(), config)
            about = {
                "clip_id": path.name,
                "uri": str(path),
                "start_s": 0.0,
                "duration_s": 10.0,
                "split": "",
                "fold": -1,
            }
            rows.append(about | {"labels": [i + 2], "source_rate": rate} | row)
            path.unlink()
        group = (rows * ROW_GROUP)[:ROW_GROUP]
        for _ in range(SPLIT_CLIPS):
            stages.time("Parquet write, synced", write_group, group, schema, str(tmp_path / "a.parquet"), per=ROW_GROUP)
    for which in (0, 1):
        print(next(iter(tables.values()))[which].head())
        for name, both in tables.items():
            print(both[which].line(name))
            assert all(t > 0 for times in both[which].times.values() for t in times)


@pytest.mark.parametrize(("extension", "minutes"), [("wav", 180), ("flac", 30), ("mp3", 30), ("ogg", 30)])
def test_three_hours_in_clips(tmp_path, capfd, extension, minutes):
    """Clips of 10 s out of one long file, in order, against as many reads of a file of 10 s."""
    clips = max(3, minutes * 6 * min(CLIPS, 5_000) // 5_000)
    short = write_long(tmp_path / f"short.{extension}", 10, RATE)
    long = write_long(tmp_path / f"long.{extension}", 10 * clips, RATE)

    def cut_long() -> None:
        for i in range(clips):
            assert len(decode(long, RATE, 10.0 * i, 10.0).waveform) > 9.8 * RATE

    def read_short() -> None:
        for _ in range(clips):
            assert len(decode(short, RATE, 0.0, 10.0).waveform) > 9.8 * RATE

    own, ratios = paired(read_short, cut_long)
    Path(long).unlink()
    capfd.readouterr()  # libmpg123 remarks on every seek that it has no frames before it
    with capfd.disabled():
        what = f"{extension}, {clips} clips of 10 s out of one file, time over that of files of their own"
        say(what, ratios, f"{1e3 * own / clips:.2f} ms a clip of its own file")
    assert min(ratios) > 0


TRIALS = max(60, CLIPS // 2)
MAX_DECODE_S = 10.0
MAX_GROWTH = 1 << 30  # bytes of RSS
FIELDS = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"]  # sizes and rates no file means


def damage(data: bytes, seed: int) -> tuple[bytes, float]:
    """A few bytes changed, a field made extreme, a piece cut out or doubled; and where to start decoding."""
    generator = np.random.default_rng(seed)
    reach = min(len(data), 100) if generator.random() < 0.5 else len(data)  # half of them in the header
    damaged = bytearray(data)
    for place in generator.integers(reach, size=generator.integers(1, 9)):
        damaged[place] = generator.integers(256)
    place, other = sorted(generator.integers(reach, size=2))
    how = generator.integers(8)
    if how == 0:
        damaged[place : place + 4] = FIELDS[generator.integers(len(FIELDS))]
    elif how == 1:
        del damaged[place:other]
    elif how == 2:
        damaged[place:place] = damaged[place:other]
    elif how == 3:
        del damaged[place:]
    return bytes(damaged), float(generator.choice([0.0, 0.0, 0.25, 1e4]))


def kind(files: dict[str, bytes], trial: int) -> str:
    return list(files)[trial % len(files)]


def decode_damaged(connection, folder: str, files: dict[str, bytes], first: int) -> None:
    """The child: sends (trial, None) as a trial begins and (trial, outcome) as it ends; dies with its decoder."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
    for name, data in files.items():  # undamaged: everything is imported, and each one is sound
        path = Path(folder) / name
        path.write_bytes(data)
        assert len(decode(str(path), RATE, 0.0, 10.24).waveform)
    limit = psutil.Process().memory_info().vms + 8 * MAX_GROWTH  # spares the machine, lies far above what may be
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for trial in range(first, TRIALS):
        name = kind(files, trial)
        data, start_s = damage(files[name], trial)
        path = Path(folder) / f"damaged{Path(name).suffix}"
        path.write_bytes(data)
        connection.send((trial, None))
        try:
            waveform = decode(str(path), RATE, start_s, 10.24).waveform
            fine = waveform.dtype == np.float32 and waveform.ndim == 1 and len(waveform) and np.isfinite(waveform).all()
            outcome = "a waveform" if fine else f"FAILED: {waveform.dtype} {waveform.shape} or not finite"
        except AudioError as error:
            stage = str(error).partition(":")[0]
            outcome = f"AudioError, {stage}" if stage in {"read", "decode", "waveform"} else f"FAILED: {error}"
        except BaseException as error:
            outcome = f"FAILED: {error!r}"
        connection.send((trial, outcome))


def high_water(pid: int) -> int:
    """Peak RSS in bytes. Not getrusage's, which a child inherits from its parent over fork and exec."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


@dataclass
class Fuzz:
    """What all trials came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of a decode
    growth: int = 0  # of the peak RSS, in bytes

    def run(self, folder: Path, files: dict[str, bytes], first: int) -> int:
        """Trials from `first` on in one child, until it is through, dead or stuck; the next trial's number."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=decode_damaged, args=(theirs, str(folder), files, first), daemon=True)
        child.start()
        theirs.close()
        try:
            number, _ = ours.recv()  # EOFError here: the child failed before the first trial
            before = high_water(child.pid)
            while True:
                start = time.perf_counter()
                if not ours.poll(3 * MAX_DECODE_S):
                    self.failures.append(f"{kind(files, number)}, seed {number}: stuck")
                    return number + 1
                try:
                    _, outcome = ours.recv()
                except EOFError:
                    child.join()
                    self.failures.append(f"{kind(files, number)}, seed {number}: died, exit code {child.exitcode}")
                    return number + 1
                self.slowest = max(self.slowest, time.perf_counter() - start)
                self.outcomes[f"{Path(kind(files, number)).suffix}: {outcome.partition(':')[0]}"] += 1
                if outcome.startswith("FAILED"):
                    self.failures.append(f"{kind(files, number)}, seed {number}: {outcome}")
                try:
                    self.growth = max(self.growth, high_water(child.pid) - before)
                    number, _ = ours.recv()
                except (EOFError, OSError, StopIteration):  # it is through and gone
                    return number + 1
        finally:
            child.kill()
            child.join()


def test_fuzz(request, tmp_path, write_wav):
    names = ["made.wav", "made.flac", "made.ogg", "made.mp3", "made.m4a"]
    files = {name: encoded(tmp_path / name, write_wav) for name in names}
    for fixture, pattern in (("esc10", "audio/*.ogg"), ("fsdd", "*.wav")):
        with contextlib.suppress(pytest.skip.Exception):  # the real clips are not everywhere
            folder = request.getfixturevalue(fixture)
            files |= {p.name: p.read_bytes() for p in sorted(folder.glob(pattern))[:3]}
    fuzz, trial = Fuzz(), 0
    while trial < TRIALS:  # a child that dies is followed by another
        trial = fuzz.run(tmp_path, files, trial)
    lines = "".join(f"\n  {count:5d} {outcome}" for outcome, count in sorted(fuzz.outcomes.items()))
    print(f"\n{TRIALS} damaged files: slowest {fuzz.slowest:.2f} s, peak RSS grew {fuzz.growth / 1e6:.0f} MB{lines}")
    assert not fuzz.failures, "\n".join(fuzz.failures[:20])
    assert fuzz.outcomes.total() == TRIALS and fuzz.slowest < MAX_DECODE_S and fuzz.growth < MAX_GROWTH
