"""torch.compile: one graph on one device, the same steps on one and on several."""

import dataclasses
import shutil

import pytest
import torch
import torch.distributed as dist
from helpers import training_state
from helpers.training_state import MODEL, make_inputs, make_state
from helpers.workers import run_workers

from ajepa.config import PATCH, Config, TrainConfig
from ajepa.shards.reader import Batch
from ajepa.training.async_metrics import NonFiniteLoss
from ajepa.training.inputs import prepare
from ajepa.training.step import build_state, train_step


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_a_compiled_step_is_one_graph_and_equals_the_eager_one(monkeypatch):
    monkeypatch.setattr(training_state, "MODEL", dataclasses.replace(MODEL, depth=1))  # the C++ compiler takes a minute
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in ("off", "on"):
        state = make_state(compile=compiled)
        losses.append([train_step(state, make_inputs(state, step)).loss.item() for step in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    inputs = make_inputs(state, 3)
    frequency, time = divmod(int(inputs.targets[5, 0]), MODEL.crop_frames // PATCH)
    inputs.log_mel[5, frequency * PATCH, time * PATCH] = torch.nan  # of a target alone: only the loss depends on it
    with pytest.raises(NonFiniteLoss, match="loss nan, gradient norm nan"):
        train_step(state, inputs)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"] and not counters["recompiles"]


def test_compiling_changes_no_name_of_a_weight():
    assert list(make_state(compile="on").core.state_dict()) == list(make_state(compile="off").core.state_dict())


def compiled_worker(rank: int, output: str, world_size: int) -> None:
    """Three steps, the last micro-batch of each shorter than the others."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{output}/meeting", rank=rank, world_size=world_size)
    compile_module, results = torch.nn.Module.compile, {}
    # Graphs and gradients as ever, without the C++ of Inductor, which the test above has and which takes minutes.
    torch.nn.Module.compile = lambda self, **options: compile_module(self, backend="aot_eager", **options)
    for compiled in ("off", "on"):
        results[compiled] = steps_of_a_share(compiled, rank, world_size)
    results["graphs"] = torch.tensor(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch.save(results, f"{output}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def steps_of_a_share(compiled: str, rank: int, world_size: int) -> torch.Tensor:
    """All gradients of the last step, one after the other."""
    model = dataclasses.replace(MODEL, depth=1)
    config = Config(model=model, train=TrainConfig(batch_size=6, precision="fp32", micro_batch=2, compile=compiled))
    state = build_state(config, training_state.STATISTICS, 50, torch.device("cpu"), world_size)
    for step in range(3):
        batch, own = training_state.make_batch(step, 6), slice(3 * rank, 3 * rank + 3)
        train_step(state, prepare(config, Batch(batch.log_mel[own], batch.samples[own], batch.rows[own]), 50))
    return torch.cat([parameter.grad.flatten().clone() for _, parameter in state.core.trained_parameters()])


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_two_compiled_workers_have_the_gradients_of_eager_ones(tmp_path):
    """DistributedDataParallel parts a compiled graph at its buckets, and a shorter micro-batch is one more."""
    run_workers(compiled_worker, (str(tmp_path), 2), 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        scale = found["off"].abs().max()
        assert (found["on"] - found["off"]).abs().max() <= 1e-4 * scale
        assert int(found["graphs"]) == 2
