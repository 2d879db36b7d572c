"""Figures that tell learning from collapse, the errors behind a picture, and the verdict."""

import math

import numpy as np
import pytest
import torch

from ajepa.config import Config, ModelConfig, TrainConfig
from ajepa.model.vit import Encoder
from ajepa.objectives.registry import build_objective
from ajepa.training.diagnostics import (
    Verdict,
    effective_rank,
    judge,
    mean_cosine,
    patch_errors,
    representation_health,
)
from ajepa.training.inputs import mask_batch

MODEL = ModelConfig(
    crop_frames=64, depth=1, width=32, heads=2, predictor_depth=1, predictor_width=16, predictor_heads=2
)
# Effective rank of clips and of patches every 20 steps, from the runs named in diagnostics.py.
HEALTHY = [
    (19.4, 83.9), (19.5, 84.0), (19.5, 83.9), (19.0, 82.5), (18.0, 79.6), (17.0, 76.1), (16.3, 72.9), (15.8, 70.1),
    (15.9, 68.2), (16.2, 66.8), (16.9, 66.0), (17.7, 65.4), (18.5, 65.0), (19.3, 64.7), (20.1, 64.4), (21.0, 64.1),
]  # fmt: skip
NO_TEACHER = [(19.4, 83.9), (6.7, 34.8), (6.6, 23.3), (5.7, 16.2), (4.5, 11.1), (5.2, 12.3), (5.5, 14.3), (7.7, 23.1)]
FAST_TEACHER = [
    (19.4, 83.9),
    (18.7, 82.4),
    (13.0, 65.8),
    (9.4, 49.3),
    (8.0, 39.6),
    (7.5, 33.9),
    (7.4, 30.7),
    (7.4, 28.9),
]


def history(ranks, **figures):
    return [
        {"step": 20 * i, "effective_rank": clips, "patch_rank": patches} | figures
        for i, (clips, patches) in enumerate(ranks)
    ]


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_effective_rank_counts_equal_directions(rank):
    features = torch.eye(16)[:rank].repeat(10, 1)
    assert effective_rank(features) == pytest.approx(rank, rel=1e-3)


def test_collapsed_features_have_rank_one():
    assert effective_rank(torch.randn(16).expand(100, 16)) == pytest.approx(1, abs=0.01)


def test_effective_rank_of_noise_is_near_its_dimension():
    assert effective_rank(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))) > 15.5


def test_effective_rank_is_the_same_from_either_side():
    features = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    assert effective_rank(features) == pytest.approx(effective_rank(features.T), rel=1e-4)


def test_mean_cosine_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert mean_cosine(features) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
    assert mean_cosine(torch.stack([features, torch.ones(3, 2)])) == pytest.approx((2 * 0.5**0.5 / 3 + 1) / 2)
    assert math.isnan(mean_cosine(features[:1]))


@pytest.fixture
def encoder():
    return build_objective(Config(model=MODEL, train=TrainConfig())).target_encoder


@pytest.fixture
def crops():
    return torch.randn(20, 128, 64, generator=torch.Generator().manual_seed(0))


def test_health_is_plain_finite_numbers(encoder, crops):
    health = representation_health(encoder, crops)
    assert all(type(v) is float and math.isfinite(v) for v in health.values())
    assert 1 <= health["effective_rank"] <= 19 and 1 <= health["patch_rank"] <= 32


def test_patches_that_tell_only_their_place_are_found(encoder, crops):
    with torch.no_grad():
        encoder.patch_embed.weight.zero_()
    health = representation_health(encoder, crops)
    assert health["position_share"] == pytest.approx(1, abs=1e-3)
    assert health["clip_cosine"] == pytest.approx(1, abs=1e-3)


def test_patches_that_tell_only_their_clip_are_found(encoder, crops):
    with torch.no_grad():
        encoder.positions.zero_()
    health = representation_health(encoder, crops[:, :1, :1].expand(-1, 128, 64))
    assert health["patch_cosine"] == pytest.approx(1, abs=1e-3)
    assert health["patch_cosine_centred"] == pytest.approx(1, abs=1e-3)
    assert health["position_share"] < 0.01


def test_health_does_not_depend_on_the_chunk(encoder, crops, monkeypatch):
    whole = representation_health(encoder, crops)
    monkeypatch.setattr("ajepa.training.diagnostics.CHUNK_PATCHES", 100)
    assert representation_health(encoder, crops) == pytest.approx(whole, rel=1e-4)


def test_health_is_measured_in_float32(encoder, crops):
    alone = representation_health(encoder, crops)
    with torch.autocast("cpu", torch.bfloat16):
        assert representation_health(encoder, crops) == alone


def test_health_leaves_the_encoder_as_it_is(crops):
    encoder = Encoder(MODEL).train()
    representation_health(encoder, crops)
    assert encoder.training and all(p.requires_grad for p in encoder.parameters())


def test_more_crops_than_promised_are_refused(encoder):
    with pytest.raises(ValueError, match="at most 256"):
        representation_health(encoder, torch.zeros(257, 128, 64))


@pytest.mark.parametrize("loss", ["smooth_l1", "l1", "mse", "cosine"])
def test_patch_errors_average_to_the_loss(loss, crops):
    config = Config(model=MODEL, train=TrainConfig(loss=loss))
    model = build_objective(config)
    context, targets = mask_batch(config, np.arange(len(crops)), 100)
    errors = patch_errors(model, crops, context, targets)
    assert errors.nanmean().item() == pytest.approx(model(crops, context, targets)[0].item(), rel=1e-5)
    assert torch.equal(errors.isnan().nonzero()[:, 1].reshape(context.shape), context)


def test_the_dip_of_a_healthy_run_is_no_collapse():
    states = [judge(history(HEALTHY[:end]), 192).state for end in range(2, len(HEALTHY) + 1)]
    assert set(states) == {"no sign of collapse", "learning"} and states[-1] == "learning"


@pytest.mark.parametrize(("ranks", "first"), [(NO_TEACHER, 2), (FAST_TEACHER, 6)])
def test_a_collapse_is_called_once_it_is_measured_twice_and_stays_called(ranks, first):
    states = [judge(history(ranks[: i + 1]), 192).state for i in range(1, len(ranks))]
    assert "collapsing" not in states[: first - 1]
    assert set(states[first - 1 :]) == {"collapsing"}


def test_the_message_says_what_and_where_to_read():
    verdict = judge(history([(19.4, 83.9), (3.3, 9.0), (3.1, 8.0)]), 192)
    assert str(verdict) == (
        "effective rank 3.1, below 5% of width 192 and fallen from 19.4: collapsing; see ajepa/training/README.md"
    )


def test_few_crops_allow_only_a_small_rank():
    ranks = [(6.0, 60.0), (4.0, 50.0), (2.5, 20.0), (2.4, 20.0)]
    assert judge(history(ranks), 192).state == "collapsing"
    assert judge(history(ranks), 192, crops=21).state == "watch"  # 2.4 is more than 5% of 20


def test_a_small_rank_that_never_was_larger_is_watched():
    verdict = judge(history([(8.0, 60.0), (7.8, 60.0), (7.9, 60.0)]), 192)
    assert verdict.state == "watch" and "below 5% of width 192" in verdict.reason


def test_patches_that_keep_their_rank_speak_against_collapse():
    assert judge(history([(19.4, 84.0), (9.0, 60.0), (8.8, 60.0)]), 192).state == "watch"


@pytest.mark.parametrize(
    ("figures", "state"),
    [
        ({"clip_cosine": 0.995}, "learning"),  # as at the start
        ({"target_std": 0.04}, "collapsing"),
        ({"target_std": 0.7, "prediction_std": 0.01}, "watch"),
        ({"target_std": 0.7, "prediction_std": 0.3}, "learning"),
        ({"online_linear": 0.6, "online_linear_random": 0.7}, "watch"),
        ({"online_linear": 0.68, "online_linear_random": 0.7}, "no sign of collapse"),
        ({"online_linear": 0.72, "online_linear_random": 0.7}, "no sign of collapse"),  # the probe is good to 0.03
        ({"online_linear": 0.74, "online_linear_random": 0.7}, "learning"),
        ({"loss": math.nan, "clip_cosine": math.nan, "target_std": math.nan}, "learning"),
    ],
)
def test_other_signs(figures, state):
    assert judge(history(HEALTHY, **figures), 192).state == state


@pytest.mark.parametrize(
    ("cosines", "state"),
    [((0.4, 0.4, 0.85), "watch"), ((0.4, 0.9, 0.995), "watch"), ((0.4, 0.993, 0.995), "collapsing")],
)
def test_clips_that_grow_alike(cosines, state):
    rows = [h | {"clip_cosine": c} for h, c in zip(history(HEALTHY[:3]), cosines, strict=True)]
    assert judge(rows, 192).state == state


def test_a_small_rank_that_grows_is_learning():
    assert judge(history([(8.0, 60.0), (8.1, 60.0), (8.5, 60.0)]), 192).state == "learning"


def test_a_fallen_rank_and_a_probe_below_the_random_encoder_are_a_collapse():
    ranks = [(40.0, 84.0), (18.0, 30.0), (17.0, 30.0)]
    assert judge(history(ranks), 192).state == "watch"
    rows = history(ranks, online_linear=0.5, online_linear_random=0.6)
    assert judge(rows, 192) == Verdict(
        "collapsing", "effective rank 17.0, fallen from 40.0, online probe 0.50 (random init 0.60)"
    )


@pytest.mark.parametrize("rows", [[], [{"step": 20, "loss": 0.5}], history(HEALTHY[:1])])
def test_without_two_measurements_nothing_is_claimed(rows):
    assert judge(rows, 192).state == "watch"
