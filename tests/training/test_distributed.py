"""Several workers, uneven shares and micro-batches do what one worker does with the whole batch."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.training_state import MODEL, STATISTICS, make_batch
from helpers.workers import run_workers

from ajepa.config import PRESETS, Config, TrainConfig
from ajepa.objectives.registry import OBJECTIVES
from ajepa.shards.reader import Batch
from ajepa.training.inputs import prepare
from ajepa.training.step import TrainState, _fitting_clips, build_state, train_step

BATCH, STEPS = 8, 3


def make_config(**train) -> Config:
    settings = {"batch_size": BATCH, "precision": "fp32", "lr": 1e-3, "compile": "off"} | train
    return Config(model=MODEL, train=TrainConfig(**settings))


def share_of(batch: Batch, rank: int, world_size: int) -> Batch:
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    return Batch(batch.log_mel[part], batch.samples[part], batch.rows[part])


def run_steps(config: Config, dtype: torch.dtype, rank: int = 0, world_size: int = 1) -> TrainState:
    """A few steps on this rank's shares; the state they end in."""
    state = build_state(config, STATISTICS, 50, torch.device("cpu"), world_size)
    for module in (state.core, state.normalise):
        module.to(dtype)
    if dtype == torch.float64 and world_size > 1:  # buckets were made for float32
        state.model = torch.nn.parallel.DistributedDataParallel(state.core, broadcast_buffers=False)
    for step in range(STEPS):
        batch = share_of(make_batch(step), rank, world_size)
        train_step(state, prepare(config, batch, 50), stop=rank if step == STEPS - 1 else 0)
    return state


@cache
def one_worker(dtype: torch.dtype, masks_per_clip: int = 1, objective: str = "jepa") -> dict[str, torch.Tensor]:
    """Gradients of one worker with the whole batch at once."""
    return gradients(run_steps(make_config(masks_per_clip=masks_per_clip, objective=objective), dtype))


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    """Of the last step, before the state is used again."""
    return {name: p.grad.clone() for name, p in state.core.trained_parameters()}


CASES = {  # workers, settings
    "halves": (2, {}),
    "uneven shares": (3, {}),
    "micro-batches": (2, {"micro_batch": 3}),
    "several masks": (2, {"masks_per_clip": 2, "micro_batch": 1}),
} | {f"{name} in uneven shares": (3, {"objective": name, "micro_batch": 2}) for name in OBJECTIVES if name != "jepa"}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}  # the steps before make float32's rounding errors larger


def worker(rank: int, output: str) -> None:
    """All cases, first of three workers and then of the first two: starting processes takes longer than the steps."""
    torch.set_num_threads(1)
    for world_size in range(3, max(rank, 1), -1):
        run_cases(rank, world_size, output)


def run_cases(rank: int, world_size: int, output: str) -> None:
    dist.init_process_group("gloo", f"file://{output}/meeting{world_size}", rank=rank, world_size=world_size)
    results = {}
    for name, (workers, train) in CASES.items():
        for dtype in BOUNDS if workers == world_size else ():
            state = run_steps(make_config(**train), dtype, rank, world_size)
            results[f"{name} {dtype}"] = gradients(state)
            results["stop"] = {"request": torch.tensor(state.stop_request)}
    torch.save(results, f"{output}/{rank}-of-{world_size}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of every rank by the number of workers."""
    folder = tmp_path_factory.mktemp("workers")
    run_workers(worker, (str(folder),), 3)
    return {n: [torch.load(folder / f"{rank}-of-{n}.pt", weights_only=True) for rank in range(n)] for n in (2, 3)}


@pytest.mark.process
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_workers_together_have_the_gradient_of_one(ranks, name, dtype):
    """After three steps, so that weights, moments and the EMA target agree as well."""
    world_size, train = CASES[name]
    one = one_worker(dtype, train.get("masks_per_clip", 1), train.get("objective", "jepa"))
    scale = max(g.abs().max() for g in one.values())
    for rank in ranks[world_size]:
        for parameter, gradient in one.items():
            difference = (rank[f"{name} {dtype}"][parameter] - gradient).abs().max()
            assert difference <= BOUNDS[dtype] * scale, parameter


@pytest.mark.process
def test_the_largest_stop_request_reaches_every_worker(ranks):
    assert [int(rank["stop"]["request"]) for rank in ranks[3]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("objective", "micro_batch"), [*(("jepa", n) for n in (1, 8, 100)), *((name, 3) for name in OBJECTIVES)]
)
def test_micro_batches_add_up_to_the_batch(objective, micro_batch):
    parts = gradients(run_steps(make_config(objective=objective, micro_batch=micro_batch), torch.float64))
    for name, gradient in one_worker(torch.float64, objective=objective).items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-10, atol=1e-12)


def test_a_cpu_computes_no_more_clips_at_a_time_than_memory_allows():
    assert [_fitting_clips(PRESETS[name]) for name in ("nano", "base")] == [64, 8]
    several = dataclasses.replace(PRESETS["base"], train=TrainConfig(masks_per_clip=16))
    assert _fitting_clips(several) == 1


def test_the_loss_of_micro_batches_is_that_of_the_batch():
    losses = []
    for micro_batch in (0, 3):
        config = make_config(micro_batch=micro_batch)
        state = build_state(config, STATISTICS, 50, torch.device("cpu"))
        losses.append(train_step(state, prepare(config, make_batch(), 50)).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.isfinite(losses[0])
