"""The assembled method: where gradients go, how the target follows, and that the loss is that of the parts."""

import dataclasses

import numpy as np
import torch

from ajepa.config import Config, ModelConfig, TrainConfig
from ajepa.model.losses import normalise_targets, prediction_errors
from ajepa.model.vit import gather, patchify
from ajepa.objectives.jepa import AJEPA
from ajepa.objectives.registry import build_objective
from ajepa.training.inputs import mask_batch

CONFIG = Config(
    model=ModelConfig(
        crop_frames=128, depth=2, width=32, heads=4, predictor_depth=1, predictor_width=16, predictor_heads=2
    )
)


def inputs(config: Config = CONFIG, clips: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_mel = torch.randn(clips, 128, 128, generator=torch.Generator().manual_seed(0))
    return log_mel, *mask_batch(config, np.arange(clips), 100)


def test_no_gradient_reaches_the_target_encoder():
    model = AJEPA(CONFIG)
    model(*inputs())[0].backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in model.trained_parameters())


def test_the_loss_is_that_of_its_parts():
    model = AJEPA(CONFIG)
    log_mel, context, targets = inputs()
    loss, errors, prediction, target, _ = model(log_mel, context, targets)
    patches = patchify(log_mel)
    expected_target = gather(normalise_targets(model.target_encoder(patches)), targets)
    expected = model.predictor(model.context_encoder(patches, context), context, targets)
    torch.testing.assert_close(target, expected_target)
    torch.testing.assert_close(prediction, expected)
    torch.testing.assert_close(errors, prediction_errors(expected, expected_target))
    torch.testing.assert_close(loss, errors.mean())


def test_the_target_starts_equal_and_follows_by_the_momentum():
    model = build_objective(CONFIG)
    pairs = list(zip(model.target_encoder.parameters(), model.context_encoder.parameters(), strict=True))
    assert all(torch.equal(t, c) for t, c in pairs)
    before = [t.clone() for t, _ in pairs]
    with torch.no_grad():
        for _, c in pairs:
            c.add_(1.0)
    for momentum in (0.75, 1.0, 0.0):
        expected = [momentum * b + (1 - momentum) * c for b, (_, c) in zip(before, pairs, strict=True)]
        model.end_step(momentum)
        for (t, _), e in zip(pairs, expected, strict=True):
            torch.testing.assert_close(t, e, rtol=1e-5, atol=1e-6)
        before = [t.clone() for t, _ in pairs]


def test_several_masks_of_a_clip_give_the_mean_of_their_losses():
    config = dataclasses.replace(CONFIG, train=TrainConfig(masks_per_clip=4))
    model = AJEPA(config)
    log_mel, context, targets = inputs(config)
    assert len(context) == 12
    together = model(log_mel, context, targets)[0]
    apart = [model(log_mel[i // 4 : i // 4 + 1], context[i : i + 1], targets[i : i + 1])[0] for i in range(12)]
    torch.testing.assert_close(together, torch.stack(apart).mean())


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(123)
    first = build_objective(CONFIG).state_dict()
    torch.rand(10)
    second = build_objective(CONFIG).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = build_objective(dataclasses.replace(CONFIG, train=TrainConfig(seed=1))).state_dict()
    assert not torch.equal(first["predictor.embed.weight"], other["predictor.embed.weight"])
