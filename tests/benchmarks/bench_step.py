"""The training step on the CPU against the matmul rate of the same run; what masks, EMA and data take of it; Ray Train
against plain DDP. Run with `make bench`."""

import socket
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmarks.bench_gpu import (
    STATISTICS,
    make_config,
    make_inputs,
    make_naive_state,
    make_state,
    naive_step,
    profile_parts,
)
from benchmarks.common import ROUNDS, say, seconds, sound

from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.training.flops import gemm_rate, step_flops
from ajepa.training.inputs import prepare
from ajepa.training.loop import train
from ajepa.training.run_folder import read_history
from ajepa.training.step import build_state, train_step
from ajepa.training.worker import WorkerHooks
from pipelines.cli.arguments import usable_cpus
from pipelines.jobs import pretrain
from pipelines.pretrain import PretrainArgs

pytestmark = pytest.mark.timeout(3_600)
CPU = torch.device("cpu")
THREADS = usable_cpus()


@pytest.fixture(autouse=True)
def all_threads():
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("preset", "batch"), [("base", 8), ("small", 8), ("nano", 64)])
def test_step_against_matmul(preset, batch):
    """Model FLOPs a second of an fp32 step over the rate of a 4096-cube in the same arithmetic; bf16 over fp32."""
    rates, faster, naive, bf16 = [], [], [], torch.cpu._is_avx512_bf16_supported()
    states = {
        p: make_state(make_config(preset, batch, precision=p), CPU) for p in ("fp32", *(["bf16"] if bf16 else []))
    }
    inputs = make_inputs(states["fp32"].config, 1, CPU)[0]
    peer = make_naive_state(states["fp32"].config, CPU)
    for state in states.values():
        train_step(state, inputs)
    naive_step(peer, inputs)
    work = batch * step_flops(states["fp32"].config)
    for _ in range(ROUNDS):
        gemm = gemm_rate(CPU, torch.float32, 4096, 1)
        took = {p: seconds(lambda s=state: train_step(s, inputs)) for p, state in states.items()}
        rates.append(work / took["fp32"] / gemm)
        faster += [took["fp32"] / took["bf16"]] if bf16 else []
        naive.append(seconds(lambda: naive_step(peer, inputs)) / took["fp32"])
    say(f"{preset} step, fp32, batch {batch}: model FLOPs over the fp32 matmul rate", rates, f"{took['fp32']:.2f} s")
    if bf16:
        say(f"{preset} step: bf16 over fp32", faster)
    say(f"{preset} step, fp32, speed over the naive step", naive)
    assert min(rates) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_the_time_of_a_base_step_goes(precision):
    config = make_config("base", 8, precision=precision)
    parts = profile_parts(make_state(config, CPU), make_inputs(config, 1, CPU)[0])
    whole = sum(parts.values())
    print(f"\n| part of a base step of 8, {precision} | ms | share |\n|---|---|---|")
    for part, took in parts.items():
        print(f"| {part} | {took * 1e3:.1f} | {took / whole:.1%} |")
    assert parts["masks"] < whole


def test_several_masks_a_clip():
    """Seconds of a step with 4 masks a clip over one with 1: the target encoder runs once for all of them."""
    for preset, batch in (("base", 4), ("nano", 32)):
        states = [make_state(make_config(preset, batch, masks_per_clip=m), CPU) for m in (1, 4)]
        inputs = [make_inputs(state.config, 1, CPU)[0] for state in states]
        for state, x in zip(states, inputs, strict=True):
            train_step(state, x)
        ratios = []
        for _ in range(ROUNDS):
            one, four = (seconds(lambda s=s, x=x: train_step(s, x)) for s, x in zip(states, inputs, strict=True))
            ratios.append(four / one)
        say(f"{preset}: 4 masks a clip, seconds over 1 mask", ratios, "(4 would be naive)")
        assert min(ratios) > 1


def test_waiting_for_data(long_dataset, tmp_path):
    """Share of the time of `base` steps that the loop waits for its reader."""
    config = make_config("base", 8, max_steps=6, log_every=3, eval_every=100, checkpoint_every=100, epochs=100)
    reports = []
    train(config, long_dataset, str(tmp_path / "run"), WorkerHooks(0, 1, CPU, reports.append))
    waits = [report["data_wait"] for report in reports if "data_wait" in report]
    say("base: share of the time waiting for data", waits)
    assert max(waits) < 1


@pytest.fixture(scope="module")
def long_dataset(tmp_path_factory, build_dataset, write_wav):
    """64 clips of 10.24 s."""
    root = tmp_path_factory.mktemp("long")
    clips = []
    for i in range(64):
        uri = write_wav(root / f"{i}.wav", sound(10.24, 16_000, seed=i)[:, 0])
        clips.append({"clip_id": f"{i}", "uri": uri})
    return build_dataset(root / "shards", clips, shard_size=64, front_end=FrontEndConfig(), label_names=[])


def _ddp_worker(rank: int, port: int, data: str, steps: int, output: str) -> None:
    """Plain DDP, as torchrun would start it: reader, step, nothing else."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = make_config("nano", 64)
    state = build_state(config, STATISTICS, steps, CPU, 2)
    reader = ShardReader(open_dataset(data), crop_frames=128, batch_size=64, seed=0, rank=rank, world_size=2)
    times = []
    for batch in reader.batches(0, steps):
        train_step(state, prepare(config, batch, steps))
        times.append(time.perf_counter())
    if rank == 0:
        Path(output).write_text(str(statistics.median(np.diff(times[5:]))))
    dist.destroy_process_group()


@pytest.mark.ray
def test_ray_train_against_plain_ddp(long_dataset, tmp_path):
    """Seconds a step of Ray Train with 2 CPU workers over the same steps in plain DDP processes."""
    steps, ratios = 60, []
    config = make_config("nano", 64, max_steps=steps, log_every=10, eval_every=1000, checkpoint_every=1000)
    for i in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(_ddp_worker, (port, long_dataset.path, steps, str(tmp_path / "ddp")), 2)
        args = PretrainArgs(
            data=long_dataset.path, output=str(tmp_path / f"run{i}"), num_workers=2, threads=1,
            mlflow_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", config=config,
        )  # fmt: skip
        pretrain.main(args, quiet=True)
        own = statistics.median(r["seconds_per_step"] for r in read_history(args.output)[2:-1])
        ratios.append(own / float((tmp_path / "ddp").read_text()))
    say("Ray Train, seconds a step over plain DDP, 2 workers", ratios)
    assert min(ratios) > 0
