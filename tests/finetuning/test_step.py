"""One step: micro-batches and several workers have the gradient of one worker's whole batch; average, freezing."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
from helpers.runs import SHORT_MODEL
from helpers.workers import run_workers

from ajepa.errors import UserError
from ajepa.finetuning.clips import open_reader, prepare
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.model import Classifier
from ajepa.finetuning.schedule import Schedule
from ajepa.finetuning.step import FinetuneState, build_state, fitting_clips, train_step
from ajepa.inference.pretrained import random_encoder
from ajepa.shards.dataset import open_dataset
from ajepa.shards.labels import read_labels

STEPS = 3
AUGMENTED = {
    "batch_size": 12, "epochs": 5, "warmup_epochs": 0.0, "precision": "fp32", "encoder_lr": 1e-3, "head_lr": 1e-2,
    "mixup": 0.5, "time_masks": 1, "frequency_masks": 1, "masked_keys": 0.2,
}  # fmt: skip


def make_state(path, rank=0, world_size=1, dtype=torch.float32, **changes):
    """(state, this rank's inputs of STEPS steps)."""
    config = FinetuneConfig(**(AUGMENTED | changes))
    dataset = open_dataset(path)
    labels = read_labels(dataset)
    audio = random_encoder(SHORT_MODEL, 0, dataset.front_end, dataset.statistics)
    rows = torch.arange(dataset.num_clips).numpy()
    reader = open_reader(config, dataset, labels, rows, rank, world_size)
    model = Classifier(audio, labels.num_classes, config.pooling)
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model = model.to(dtype)
    state = build_state(config, model, Schedule(config, reader.num_clips), False, torch.device("cpu"), world_size)
    return state, [prepare(config, labels, reader.batch(step)) for step in range(STEPS)]


def run_steps(path, rank=0, world_size=1, dtype=torch.float32, **changes) -> FinetuneState:
    """In float64 several steps, so that weights and moments agree as well; in float32, where Adam makes much of the
    rounding of sums, one."""
    state, steps = make_state(path, rank, world_size, dtype, **changes)
    for inputs in steps if dtype == torch.float64 else steps[:1]:
        train_step(state, inputs, stop=rank)
    return state


def gradients(state: FinetuneState) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in state.core.named_weights()}


def assert_same(ours, theirs, bound):
    scale = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= bound * scale, name


def test_runs_of_two_threads_are_bit_identical(small_dataset):
    torch.set_num_threads(2)
    try:
        runs = [run_steps(small_dataset.path, pooling="bands mean+std").core.state_dict() for _ in range(3)]
    finally:
        torch.set_num_threads(1)
    for other in runs[1:]:
        assert [name for name in other if not torch.equal(other[name], runs[0][name])] == []


@cache
def undivided(path) -> dict[str, torch.Tensor]:
    return gradients(run_steps(path, dtype=torch.float64, micro_batch=100))


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_micro_batches_add_up_to_the_batch(small_dataset, micro_batch):
    parts = gradients(run_steps(small_dataset.path, dtype=torch.float64, micro_batch=micro_batch))
    assert_same(parts, undivided(small_dataset.path), 1e-10)


CASES = {"uneven shares": {"mixup": 0.0, "batch_size": 11}, "augmented": {}, "micro-batches": {"micro_batch": 4}}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4}  # the steps before make float32's rounding errors larger


def worker(rank: int, world_size: int, path: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{output}/meeting", rank=rank, world_size=world_size)
    found = {}
    for name, changes in CASES.items():
        for dtype in BOUNDS:
            state = run_steps(path, rank, world_size, dtype, **changes)
            found[f"{name} {dtype}"] = gradients(state)
    torch.save(found | {"stop": state.stop_request}, f"{output}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_workers(worker, (2, small_dataset.path, str(folder)), 2)
    return [torch.load(folder / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.process
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_two_workers_have_the_gradient_of_one(ranks, small_dataset, name, dtype):
    one = gradients(run_steps(small_dataset.path, dtype=dtype, **CASES[name]))
    for rank in ranks:
        assert_same(rank[f"{name} {dtype}"], one, BOUNDS[dtype])


@pytest.mark.process
def test_the_largest_stop_request_reaches_every_worker(ranks):
    assert [rank["stop"] for rank in ranks] == [1, 1]


def test_a_frozen_encoder_stays_while_the_head_learns(small_dataset):
    state = run_steps(small_dataset.path, freeze_epochs=1.0, weight_decay=0.1)
    fresh = make_state(small_dataset.path)[0]
    for (name, ours), (_, theirs) in zip(state.core.named_weights(), fresh.core.named_weights(), strict=True):
        assert torch.equal(ours, theirs) != name.startswith("head."), name


def test_the_average_follows_the_weights(small_dataset):
    state, steps = make_state(small_dataset.path, ema=0.9)
    wanted = state.core.head.weight.detach().clone()
    for step, inputs in enumerate(steps):
        train_step(state, inputs)
        momentum = min(0.9, (1 + step) / (10 + step))
        wanted = momentum * wanted + (1 - momentum) * state.core.head.weight.detach()
    torch.testing.assert_close(state.average.head.weight, wanted)
    assert state.scored is state.average


def test_without_an_average_the_weights_themselves_are_scored(small_dataset):
    state, _ = make_state(small_dataset.path)
    assert state.scored is state.core


def test_a_log_mel_that_is_not_finite_is_named(small_dataset):
    state, steps = make_state(small_dataset.path, mixup=0.0, time_masks=0, frequency_masks=0)
    steps[0].log_mel[2, 5, 0] = float("nan")
    with pytest.raises(UserError, match=rf"step 0: .*not finite in dataset rows \[{steps[0].rows[2]}\]"):
        train_step(state, steps[0])


def test_a_cpu_computes_no_more_clips_at_a_time_than_memory_allows(audio):
    assert [fitting_clips(audio, frames) for frames in (1024, 512, 16)] == [8, 16, 512]
