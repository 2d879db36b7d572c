"""The whole chain on sounds it makes itself: synthesise, preprocess, pretrain, probe, and pictures. No download."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
import ray
import torch

from ajepa.audio.synthetic import CLASSES, SECONDS, write_clips
from ajepa.config import PRESETS, Config, FrontEndConfig
from ajepa.model.precision import autocast_dtype
from ajepa.training.timing import seconds_per_step
from pipelines.cli.arguments import choose_threads
from pipelines.cli.lock import claimed
from pipelines.jobs import preprocess, pretrain, probe
from pipelines.preprocess import PreprocessArgs
from pipelines.pretrain import PretrainArgs
from pipelines.probe import ProbeArgs
from pipelines.rayjobs.cluster import start_ray
from pipelines.tracking import mlflow_run

if TYPE_CHECKING:  # the commands import this module
    from pipelines.demo import DemoArgs

LOOP = 2_000_000  # iterations of the loop that tells how fast this machine runs Python
OTHER_STAGES = 1050.0  # time of all but the training steps, in times of that loop


def demo_config(args: DemoArgs) -> Config:
    """The nano recipe made short: crops of 0.64 s, half of nano's, so that a step takes half of its time; a teacher
    that follows within 100 to 250 steps, where nano's would still be near its initialisation at the end; and targets
    normalised over the clip. Chosen by the demo's own probe at one seed (lr 2e-3 and nano's EMA were worse)."""
    nano = PRESETS["nano"]
    train = dataclasses.replace(
        nano.train, max_steps=args.max_steps, seed=args.seed, ema_start=0.99, ema_end=0.996, target_norm="instance",
        eval_every=max(1, args.max_steps // 2),
    )  # fmt: skip
    return dataclasses.replace(nano, model=dataclasses.replace(nano.model, crop_frames=64), train=train)


class MemoryWatch:
    """The most memory that this process and all it started had at one time inside the block, over what they had
    before. Pages that processes share, as libraries and Ray's object store, are left out."""

    def __enter__(self) -> Self:
        self.process = psutil.Process()
        self.start = self.peak = self._held()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="memory-watch").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    @property
    def peak_gb(self) -> float:
        return max(0, self.peak - self.start) / 1e9

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        return sum(private_bytes(process) for process in [self.process, *self.process.children(recursive=True)])


def private_bytes(process: psutil.Process) -> int:
    """Resident memory without what is shared, where the system tells the two apart; 0 of a process that has ended."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return memory.rss - getattr(memory, "shared", 0)


def python_seconds() -> float:
    """Time of a loop of fixed length: how fast one core of this machine runs Python; the best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        sum(i * i for i in range(LOOP))
        times.append(time.perf_counter() - start)
    return min(times)


def expected_minutes(steps: int, step: float, python: float) -> float:
    """Minutes of the whole demo where a training step takes `step` seconds and the loop of `python_seconds` takes
    `python`. The other stages mostly start processes, decode and draw: they depend on how fast one core runs Python,
    and hardly on its vector units."""
    return (steps * step + OTHER_STAGES * python) / 60


@contextmanager
def stage(name: str, times: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def main(args: DemoArgs) -> None:
    folder = Path(args.output).absolute()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    times: dict[str, float] = {}
    with claimed(str(folder)), MemoryWatch() as memory:
        announce_time(args)
        run_stages(args, folder, uri, times)
    for path in sorted((folder / "run/figures").iterdir()):
        print(path)
    print("\n" + ", ".join(f"{name.split(' (')[0].split(',')[0]} {seconds:.0f} s" for name, seconds in times.items()))
    print(f"{sum(times.values()) / 60:.1f} min in all, at most {memory.peak_gb:.1f} GB of memory")
    print(f"look at the runs (choose Model training at the top left): {mlflow_run.ui_command(uri)}")


def announce_time(args: DemoArgs) -> None:
    """Print how long the demo will take, from a few timed steps."""
    config, threads = demo_config(args), choose_threads(None, max(1, args.num_workers))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    step = seconds_per_step(config, device)
    where = "the GPU" if device.type == "cuda" else f"{threads} CPU threads"
    dtype = str(autocast_dtype(config.train, device) or torch.float32).removeprefix("torch.")
    minutes = expected_minutes(args.max_steps, step, python_seconds())
    print(
        f"about {minutes:.0f} min on this machine: a training step takes {step:.2f} s on {where} ({dtype})", flush=True
    )


def run_stages(args: DemoArgs, folder: Path, uri: str, times: dict[str, float]) -> None:
    with stage(f"synthesise {len(CLASSES)} classes of {args.clips_per_class} clips", times):
        manifest = write_clips(folder / "audio", args.clips_per_class)
    config = demo_config(args)
    frames = -(-round(SECONDS * 100) // 16) * 16
    with stage("preprocess (Ray Data)", times):
        start_ray()
        preprocess.main(PreprocessArgs(
            source="manifest", input=str(manifest), output=str(folder / "shards"), mlflow_uri=uri,
            front_end=FrontEndConfig(clip_frames=frames), overwrite=args.overwrite,
        ))  # fmt: skip
    run = folder / "run"
    with stage("pretrain (Ray Train)", times):
        pretrain.main(PretrainArgs(
            data=str(folder / "shards"), output=str(run), num_workers=args.num_workers, mlflow_uri=uri, config=config,
            overwrite=args.overwrite,
        ))  # fmt: skip
    ray.shutdown()
    with stage("probe, beside random init and log-mel statistics", times):
        probe.main(ProbeArgs(
            encoder=(str(run),), data=str(folder / "shards"), pooling=("mean", "mean+std"), mlflow_uri=uri,
        ))  # fmt: skip
