"""One training step: determinism, weight decay groups, non-finite batches, and that it learns."""

import numpy as np
import pytest
import torch
from helpers.training_state import MODEL, TOTAL, make_batch, make_inputs, make_state

from ajepa.audio.normalise import Normaliser
from ajepa.audio.statistics import Statistics
from ajepa.config import Config, TrainConfig
from ajepa.objectives.registry import OBJECTIVES, build_objective
from ajepa.training.async_metrics import NonFiniteLoss
from ajepa.training.inputs import mask_batch, prepare
from ajepa.training.step import train_step


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def assert_bit_identical(runs: int, clips: int, **train) -> None:
    weights = []
    for _ in range(runs):
        state = make_state(batch_size=clips, **train)
        for step in range(3):
            train_step(state, make_inputs(state, step, clips))
        weights.append(state.core.state_dict())
    for other in weights[1:]:
        assert [name for name in other if not torch.equal(other[name], weights[0][name])] == []


def test_two_runs_from_one_seed_are_bit_identical():
    assert_bit_identical(2, clips=8)


@pytest.mark.parametrize(
    "train", [{"precision": "bf16"}, {"masks_per_clip": 2}, *({"objective": name} for name in OBJECTIVES)], ids=str
)
@pytest.mark.slow
def test_runs_of_two_threads_are_bit_identical(two_threads, train):
    """Enough clips that both threads have work in every operation, and runs enough for their order to vary."""
    assert_bit_identical(4, clips=64, **train)


def test_the_loss_falls():
    state = make_state(warmup_epochs=0, lr=3e-3)
    losses = [train_step(state, make_inputs(state, i % 4)).loss.item() for i in range(50)]
    assert np.mean(losses[-5:]) < 0.88 * np.mean(losses[:3])


def test_no_weight_decay_on_biases_norms_positions_and_the_mask_token():
    state = make_state()
    names = {id(p): name for name, p in state.core.trained_parameters()}
    decayed, plain = ({names[id(p)] for p in g["params"]} for g in state.optimizer.param_groups)
    assert decayed and all(n.endswith("weight") and "norm" not in n for n in decayed)
    assert {n for n in plain if not n.endswith("bias") and "norm" not in n} == {
        "context_encoder.positions", "predictor.positions", "predictor.mask_token",
    }  # fmt: skip
    assert len(decayed) + len(plain) == len(names)


def test_a_poisoned_clip_stops_the_run_and_leaves_the_weights_alone():
    state, batch = make_state(), make_batch()
    batch.log_mel[3] = np.nan
    inputs = prepare(state.config, batch, TOTAL)
    before = {k: v.clone() for k, v in state.core.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"step 0: .*not finite in dataset rows \[3\]") as error:
        train_step(state, inputs)
    assert error.value.rows == (3,)
    assert all(torch.equal(before[k], v) for k, v in state.core.state_dict().items())
    assert state.step == 0


def test_gradients_are_clipped():
    state = make_state(grad_clip=1e-9, weight_decay=0.0)
    norm = train_step(state, make_inputs(state)).grad_norm
    clipped = torch.stack([p.grad.norm() for _, p in state.core.trained_parameters()]).norm()
    assert norm > 1e-4 and clipped < 1.01e-9


def test_half_batches_average_to_the_gradient_of_the_whole():
    """What data parallelism relies on: equal shares of a batch, exact to float64."""
    whole = make_batch(size=8)
    gradients = []
    for part in (slice(0, 8), slice(0, 4), slice(4, 8)):
        core = build_objective(Config(model=MODEL, train=TrainConfig())).double()
        context, targets = mask_batch(core.config, whole.samples[part], TOTAL)
        core(torch.from_numpy(whole.log_mel[part]).double(), context, targets)[0].backward()
        gradients.append([p.grad for _, p in core.trained_parameters()])
    for full, first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(full, (first + second) / 2, rtol=1e-10, atol=1e-12)


def test_bf16_stays_close_to_fp32():
    states = [make_state(precision=p) for p in ("fp32", "bf16")]
    losses = [train_step(state, make_inputs(state)).loss.item() for state in states]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_normaliser_gives_zero_mean_and_unit_std():
    mean, std = np.linspace(-8, 0, 128), np.linspace(1, 3, 128)
    x = torch.from_numpy(mean[:, None] + std[:, None] * np.random.default_rng(0).normal(size=(4, 128, 500)))
    y = Normaliser(Statistics(mean, std, 1))(x)
    assert y.mean().abs() < 0.02 and (y.std() - 1).abs() < 0.02


def test_fp16_scales_the_loss_and_learns():
    state = make_state(precision="fp16", warmup_epochs=0, lr=3e-3)
    before = state.scaler.get_scale()
    losses = [train_step(state, make_inputs(state, i % 4)).loss.item() for i in range(20)]
    assert before == 2.0**16 and losses[-1] < losses[0]


def test_a_gradient_that_overflows_in_fp16_skips_the_step_and_lowers_the_scale():
    state = make_state(precision="fp16")
    train_step(state, make_inputs(state))
    state.scaler.update(1e38)
    before = {k: v.clone() for k, v in state.core.state_dict().items() if "target" not in k}
    train_step(state, make_inputs(state, 1))
    assert all(torch.equal(before[k], state.core.state_dict()[k]) for k in before)
    assert state.scaler.get_scale() == pytest.approx(5e37)


def test_the_spread_of_predictions_is_measured_when_asked_for():
    state = make_state()
    assert train_step(state, make_inputs(state)).metrics == {}
    metrics = train_step(state, make_inputs(state, 1), metrics=True).metrics
    assert metrics["prediction_std"] > 0 and metrics["target_std"] > 0


def test_no_gradient_survives_into_the_next_step():
    once, twice = make_state(), make_state()
    train_step(once, make_inputs(once))
    twice.model(*[torch.randn(8, 128, 128), *make_inputs(twice).tensors()[1:]])[0].backward()
    train_step(twice, make_inputs(twice))
    for (name, a), (_, b) in zip(once.core.trained_parameters(), twice.core.trained_parameters(), strict=True):
        assert torch.equal(a, b), name
