"""The whole chain on sounds it makes itself: synthesise, preprocess, pretrain, probe, and pictures. No download."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import ray

from ajepa.config import PRESETS, Config, FrontEndConfig
from pipelines import tracking
from pipelines.demo import DemoArgs
from pipelines.jobs import preprocess, pretrain, probe
from pipelines.preprocess import PreprocessArgs
from pipelines.pretrain import PretrainArgs
from pipelines.probe import ProbeArgs
from pipelines.ray_cluster import start_ray
from pipelines.synthesis import CLASSES, SECONDS, write_clips


def demo_config(max_steps: int) -> Config:
    config = PRESETS["nano"]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=max_steps))


class MemoryWatch:
    """The most memory in use on this machine inside the block, by all processes, over what was in use before."""

    def __enter__(self) -> Self:
        self.start = psutil.virtual_memory().available
        self.peak_gb = 0.0
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="memory-watch").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.peak_gb = max(self.peak_gb, (self.start - psutil.virtual_memory().available) / 1e9)


@contextmanager
def stage(name: str, times: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def main(args: DemoArgs) -> None:
    folder = Path(args.output).absolute()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    with MemoryWatch() as memory:
        run_stages(args, folder, uri, times)
    for path in sorted((folder / "run/figures").iterdir()):
        print(path)
    print("\n" + ", ".join(f"{name.split(' (')[0].split(',')[0]} {seconds:.0f} s" for name, seconds in times.items()))
    print(f"{sum(times.values()) / 60:.1f} min in all, peak memory {memory.peak_gb:.1f} GB over the start")
    print(f"look at the runs: {tracking.ui_command(uri)}")


def run_stages(args: DemoArgs, folder: Path, uri: str, times: dict[str, float]) -> None:
    with stage(f"synthesise {len(CLASSES)} classes of {args.clips_per_class} clips", times):
        manifest = write_clips(folder / "audio", args.clips_per_class)
    config = demo_config(args.max_steps)
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
        probe.main(ProbeArgs(encoder=(str(run),), data=str(folder / "shards"), mlflow_uri=uri))
