"""The training step on a CUDA device: the CPU's arithmetic, no wait for the device, steps that are skipped.

Needs torch, numpy, pyarrow and pytest alone: `make test-gpu` runs it with the python there is.
"""

import numpy as np
import pytest
import torch
from helpers.training_state import STATISTICS, make_batch, make_inputs, make_state

from ajepa.config import Config, ModelConfig, TrainConfig
from ajepa.objectives.registry import OBJECTIVES
from ajepa.shards.reader import Batch
from ajepa.training.async_metrics import GPU_LAG, NonFiniteLoss, resolve_metrics
from ajepa.training.inputs import Inputs, on_device, prepare
from ajepa.training.snapshot import host_copies, optimizer_moments
from ajepa.training.step import TrainState, build_state, train_step

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def train(state: TrainState, first: int, last: int) -> list[float]:
    batches = (prepare(state.config, make_batch(step), state.total_steps, pin=True) for step in range(first, last))
    losses = [train_step(state, inputs).loss for inputs in on_device(batches, state.device)]
    resolve_metrics(state)
    return [float(loss) for loss in losses]


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    moments = optimizer_moments(state.core.trained_parameters(), state.optimizer)
    return host_copies({"all": state.core.state_dict() | moments})["all"]


def test_a_gpu_step_equals_the_cpu_step():
    losses = {}
    states = {device: make_state(device, compile="off") for device in ("cpu", "cuda")}
    for device, state in states.items():
        losses[device] = [
            float(train_step(state, x).loss)
            for x in on_device([make_inputs(state, step) for step in range(5)], state.device)
        ]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
    weights = {device: everything(state) for device, state in states.items()}
    for name, value in weights["cpu"].items():
        torch.testing.assert_close(
            weights["cuda"][name], value, rtol=2e-2, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("masks", [1, 2])
def test_a_compiled_step_equals_the_eager_step(masks):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(make_state("cuda", compile="on", masks_per_clip=masks), 0, 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert compiled == pytest.approx(train(make_state("cuda", compile="off", masks_per_clip=masks), 0, 4), rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close_to_fp32_and_learns(precision):
    half = train(make_state("cuda", compile="off", precision=precision), 0, 20)
    full = train(make_state("cuda", compile="off", precision="fp32"), 0, 20)
    assert half == pytest.approx(full, rel=0.05)
    assert np.mean(half[-3:]) < np.mean(half[:3])


@pytest.mark.parametrize(("objective", "masks"), [("jepa", 1), *((name, 2) for name in OBJECTIVES)])
def test_a_step_never_waits_for_the_device(objective, masks):
    state = make_state(
        "cuda", compile="off", precision="bf16", masks_per_clip=masks, micro_batch=4, objective=objective
    )
    inputs = list(on_device([prepare(state.config, make_batch(s), 50, pin=True) for s in range(8)], state.device))
    train_step(state, inputs[0])  # allocates and initialises
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in inputs[1:]:
            train_step(state, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    resolve_metrics(state)
    assert state.step == 8


@pytest.mark.parametrize("compiling", ["off", "on"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named_two_steps_later(compiling):
    state = make_state("cuda", compile=compiling, precision="bf16")
    train(state, 0, 2)
    before, steps = everything(state), [make_batch(s) for s in range(2, 6)]
    steps[0].log_mel[3, 0, 0] = np.nan
    inputs = iter(on_device([prepare(state.config, batch, 50, pin=True) for batch in steps], state.device))
    train_step(state, next(inputs))
    after = everything(state)
    targets = {name for name in before if name.startswith("target_encoder")}
    for name in set(before) - targets:  # the teacher moves towards weights that stood still
        assert torch.equal(before[name], after[name]), name
    assert all(torch.isfinite(after[name]).all() for name in targets)
    with pytest.raises(NonFiniteLoss, match=r"step 2: .*not finite in dataset rows") as caught:
        for batch in inputs:
            train_step(state, batch)
    assert caught.value.rows == (int(steps[0].rows[3]),)
    assert state.step == 2 + GPU_LAG  # the step that raised did not count


def test_batches_arrive_whole_while_others_are_computed():
    state = make_state("cuda", compile="off")
    sent = [prepare(state.config, make_batch(step, size=64), 50, pin=True) for step in range(12)]
    busy = torch.randn(2048, 2048, device="cuda")
    for want, got in zip(sent, on_device(iter(sent), state.device), strict=True):
        for _ in range(5):
            busy = busy @ busy / busy.norm()
        assert isinstance(got, Inputs) and got.log_mel.device.type == "cuda"
        for a, b in zip(want.tensors(), got.tensors(), strict=True):
            assert torch.equal(a, b.cpu())


def test_a_resumed_run_equals_an_undisturbed_one():
    whole = make_state("cuda", compile="off")
    losses = train(whole, 0, 6)
    first = make_state("cuda", compile="off")
    train(first, 0, 3)
    second = make_state("cuda", compile="off")
    second.core.load_state_dict(first.core.state_dict())
    for (_, own), (_, other) in zip(second.core.trained_parameters(), first.core.trained_parameters(), strict=True):
        second.optimizer.state[own] = {k: v.clone() for k, v in first.optimizer.state[other].items()}
    second.step = first.step
    assert train(second, 3, 6) == pytest.approx(losses[3:], rel=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole():
    whole, parts = make_state("cuda", compile="off"), make_state("cuda", compile="off", micro_batch=3)
    assert train(parts, 0, 3) == pytest.approx(train(whole, 0, 3), rel=1e-4)


def test_a_step_without_room_says_so_and_micro_batches_fit():
    """The type of error that training turns into one line, and the advice that the line gives."""
    config = ModelConfig(crop_frames=1024, width=192, depth=12, heads=3)
    train = {"batch_size": 64, "precision": "bf16", "compile": "off"}
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3e9) / total)
    try:
        whole = build_state(Config(model=config, train=TrainConfig(**train)), STATISTICS, 50, torch.device("cuda"))
        batch = Batch(np.zeros((64, 128, 1024), np.float16), np.arange(64), np.arange(64))
        (inputs,) = on_device([prepare(whole.config, batch, 50, pin=True)], whole.device)
        with pytest.raises(torch.OutOfMemoryError):
            train_step(whole, inputs)
        del whole
        torch.cuda.empty_cache()
        parts = build_state(
            Config(model=config, train=TrainConfig(**train, micro_batch=4)), STATISTICS, 50, torch.device("cuda")
        )
        train_step(parts, inputs)
        resolve_metrics(parts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert parts.step == 1
