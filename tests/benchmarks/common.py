"""What the benchmarks share: timing, the line that reports a ratio, sizes, and clips made of tones and noise."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

ROUNDS = 5
CLIPS = int(os.environ.get("AJEPA_BENCH_CLIPS", "5000"))  # scales the benchmarks of the preprocess job


def seconds(work: Callable[[], object], repeat: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def paired(ours: Callable[[], object], peer: Callable[[], object], repeat: int = 1) -> tuple[float, list[float]]:
    """Our median seconds, and the ratios peer / ours of ROUNDS interleaved rounds after a warm-up."""
    seconds(ours), seconds(peer)
    rounds = [(seconds(ours, repeat), seconds(peer, repeat)) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in rounds), [b / a for a, b in rounds]


def say(what: str, ratios: Sequence[float], note: str = "") -> None:
    print(f"\n{what}: {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}) {note}")


def sound(duration_s: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """[samples, channels] float32 of three tones under noise, the channels different."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(round(duration_s * rate)) / rate
    tones = sum(np.sin(2 * np.pi * hz * time_s) for hz in generator.uniform(100, 6_000, 3))
    return (0.1 * tones[:, None] + generator.normal(0, 0.05, (len(time_s), channels))).astype(np.float32)


def write_long(path: Path, duration_s: int, rate: int) -> str:
    """A long mono file, written ten seconds at a time: one piece over and over."""
    piece = sound(10, rate)
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for _ in range(duration_s // 10):
            file.write(piece)
    return str(path)
