"""The plan of a large run: what it asks of disks, network, memory and time, each figure a formula of measured inputs.

`PYTHONPATH=.:tests python tests/benchmarks/scale.py` writes the tables of cluster/scale.md anew.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ajepa.config import PRESETS, Config, TrainConfig
from ajepa.objectives.registry import build_objective
from ajepa.shards.schema import ROW_GROUP
from ajepa.shards.shuffle_window import GROUPS_AHEAD
from pipelines.rayjobs.plan import MAX_BLOCK

PAGE = Path(__file__).parents[2] / "cluster/scale.md"
WINDOW = 64  # row groups in use, the reader's default


@dataclass(frozen=True)
class Input:
    """A measured figure."""

    value: float
    unit: str
    what: str
    by: str  # the part of `make bench`, or the page, that measures it


@dataclass(frozen=True)
class Measured:
    """The inputs of the formulas."""

    gpu_rate: Input = Input(1_494, "clips/s", "`base` on one H100, 128 clips a step, bf16", "`bench_gpu.py`")
    ray: Input = Input(1.09, "", "seconds of a step with Ray Train over plain DDP, 2 CPU workers", "`bench_step.py`")
    clip_bytes: Input = Input(264_288, "bytes", "a clip of 10 s in a shard", "`bench_scale.py`, size of a shard")
    rows_read: Input = Input(1.02, "", "rows read over rows used", "`bench_scale.py`, 64 readers")
    orders: Input = Input(0.36, "GB", "memory for the orders of 2,000,000 clips", "`bench_scale.py`, memory")
    reader_rate: Input = Input(6_200, "clips/s", "the reader, 2 cores", "`bench_reader.py`, every digest")
    disk_rate: Input = Input(129, "MB/s", "writing a checkpoint of `base` to a disk", "`bench_scale.py`, checkpoint")
    reports: Input = Input(12_952, "a second", "reports of 64 workers in the controller", "`bench_scale.py`, reports")
    clip_seconds: Input = Input(0.0186, "s", "CPU for a FLAC of 10 s, 44.1 kHz stereo", "`bench_preprocess.py`, a clip")
    job: Input = Input(0.89, "", "rate of the job over that of bare processes", "`bench_preprocess.py`")


@dataclass(frozen=True)
class Cluster:
    """Who trains on what."""

    name: str
    workers: int  # a GPU each
    nodes: int
    clips: int = 2_000_000  # of 10 s: AudioSet's unbalanced and balanced sets, as far as they can be had
    share: int = 128  # clips of a worker's share of a step
    preset: str = "base"
    cpus_a_node: int = 128

    @property
    def epochs(self) -> int:
        return TrainConfig().epochs


CLUSTERS = (
    Cluster("8 GPUs, 1 node", 8, 1),
    Cluster("64 GPUs, 64 nodes", 64, 64, cpus_a_node=16),
)


@functools.cache
def parameters(config: Config) -> tuple[int, int]:
    """(values of the state dict, trained ones among them) of an objective, in float32."""
    with torch.device("meta"):
        objective = build_objective(config)
    return (
        sum(value.numel() for value in objective.state_dict().values()),
        sum(value.numel() for _, value in objective.trained_parameters()),
    )


def checkpoint_bytes(config: Config) -> int:
    """Weights, and two moments of each trained value; names and JSON apart (0.1 MB)."""
    values, trained = parameters(config)
    return 4 * values + 8 * trained


def worker_rate(m: Measured) -> float:
    """Clips a second of a worker that waits for nobody."""
    return m.gpu_rate.value / m.ray.value


def steps(c: Cluster) -> int:
    return c.epochs * c.clips // (c.workers * c.share)


def step_seconds(c: Cluster, m: Measured) -> float:
    return c.share / worker_rate(m)


def hours(c: Cluster, m: Measured) -> float:
    return steps(c) * step_seconds(c, m) / 3600


def groups_a_second(c: Cluster, m: Measured) -> float:
    """Row groups that all workers read."""
    return c.workers * worker_rate(m) * m.rows_read.value / ROW_GROUP


def data_rate(c: Cluster, m: Measured) -> float:
    """Bytes a second from the store to all workers."""
    return groups_a_second(c, m) * ROW_GROUP * m.clip_bytes.value


def gradient_rate(c: Cluster, m: Measured) -> float:
    """Bytes a second that a node sends, and receives, for gradients in float32: a ring over nodes, none within one."""
    _, trained = parameters(PRESETS[c.preset])
    return 2 * (c.nodes - 1) / c.nodes * 4 * trained / step_seconds(c, m)


def worker_memory(c: Cluster, m: Measured) -> float:
    """Bytes that the reader of a worker holds at most: row groups in use, twice at an epoch's beginning, those ahead,
    once more while they are parsed, and the orders of two epochs."""
    groups = 2 * math.ceil(WINDOW / c.workers) + 2 * GROUPS_AHEAD
    return groups * ROW_GROUP * m.clip_bytes.value + m.orders.value * 1e9 * c.clips / 2_000_000


def checkpoint_seconds(c: Cluster, m: Measured) -> float:
    return checkpoint_bytes(PRESETS[c.preset]) / (m.disk_rate.value * 1e6)


def preprocess_hours(c: Cluster, m: Measured) -> float:
    return c.clips * m.clip_seconds.value / m.job.value / (c.nodes * c.cpus_a_node) / 3600


def reports_a_second(c: Cluster, m: Measured) -> float:
    return 1 / (TrainConfig().log_every * step_seconds(c, m))


Figure = Callable[[Cluster, Measured], str]
FIGURES: list[tuple[str, str, Figure]] = [
    ("shards", "clips / 500", lambda c, m: f"{math.ceil(c.clips / MAX_BLOCK):,}"),
    ("bytes of the dataset", "clips x clip", lambda c, m: f"{c.clips * m.clip_bytes.value / 1e9:,.0f} GB"),
    ("hours of preprocessing, CPU alone", "clips x CPU / job / CPUs",
     lambda c, m: f"{preprocess_hours(c, m):.2f} h on {c.nodes * c.cpus_a_node:,} CPUs"),
    ("batch", "128 x workers", lambda c, m: f"{c.share * c.workers:,} clips"),
    ("a step", "128 / (GPU / Ray)", lambda c, m: f"{step_seconds(c, m) * 1e3:.0f} ms"),
    ("steps, 300 epochs", "300 x clips / batch", lambda c, m: f"{steps(c):,}"),
    ("hours of pretraining, steps alone", "steps x step", lambda c, m: f"{hours(c, m):.1f} h"),
    ("row groups read", "workers x clips/s x rows read / 64", lambda c, m: f"{groups_a_second(c, m):,.0f} /s"),
    ("requests to the store, at first", "3 a row group: size, footer, data",
     lambda c, m: f"{3 * groups_a_second(c, m):,.0f} /s"),
    ("requests to the store, in the end", "1 a row group: data", lambda c, m: f"{groups_a_second(c, m):,.0f} /s"),
    ("from the store, all nodes", "row groups x 64 x clip", lambda c, m: f"{data_rate(c, m) / 1e9:.1f} GB/s"),
    ("from the store, a node", "the same / nodes", lambda c, m: f"{8 * data_rate(c, m) / c.nodes / 1e9:.1f} Gbit/s"),
    ("gradients, a node, each way", "2 (n - 1) / n x 4 bytes x trained values / step",
     lambda c, m: f"{8 * gradient_rate(c, m) / 1e9:.0f} Gbit/s"),
    ("a connection to the store, at least", "a worker's bytes/s / 16",
     lambda c, m: f"{data_rate(c, m) / c.workers / GROUPS_AHEAD / 1e6:.0f} MB/s"),
    ("cores of a worker's reader", "2 x clips/s / reader",
     lambda c, m: f"{2 * worker_rate(m) / m.reader_rate.value:.1f}"),
    ("memory of a worker's reader", "(2 x 64 / workers + 2 x 16) row groups + orders",
     lambda c, m: f"{worker_memory(c, m) / 1e9:.1f} GB"),
    ("a checkpoint", "4 bytes x (all values + 2 x trained)",
     lambda c, m: f"{checkpoint_bytes(PRESETS[c.preset]) / 1e9:.2f} GB"),
    ("writing one, beside the steps", "checkpoint / disk", lambda c, m: f"{checkpoint_seconds(c, m):.0f} s"),
    ("steps meanwhile", "that / step", lambda c, m: f"{checkpoint_seconds(c, m) / step_seconds(c, m):.0f}"),
    ("reports to the controller", "1 / (20 x step)", lambda c, m: f"{reports_a_second(c, m):.2f} /s"),
    ("time the controller works on them", "that / reports",
     lambda c, m: f"{reports_a_second(c, m) / m.reports.value:.3%}"),
]  # fmt: skip


def plan_table(m: Measured = Measured()) -> str:
    lines = [
        "| figure | formula | " + " | ".join(c.name for c in CLUSTERS) + " |",
        "|---|---|" + "---|" * len(CLUSTERS),
        *(f"| {what} | {how} | " + " | ".join(f(c, m) for c in CLUSTERS) + " |" for what, how, f in FIGURES),
    ]
    return "\n".join(lines)


def input_table(m: Measured = Measured()) -> str:
    inputs = [getattr(m, field.name) for field in fields(m)]
    lines = [f"| {i.what} | {i.value:,} {i.unit}".rstrip() + f" | {i.by} |" for i in inputs]
    return "\n".join(["| measured | value | by |", "|---|---|---|", *lines])


def with_tables(page: str) -> str:
    """The page with its tables, each between two markers, computed anew."""
    for name, text in (("inputs", input_table()), ("plan", plan_table())):
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        page = re.sub(f"{marks[0]}.*?{marks[1]}", f"{marks[0]}\n{text}\n{marks[1]}", page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
