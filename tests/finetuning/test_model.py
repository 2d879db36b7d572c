"""Learning rates by layer, what decays, and the loss."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ajepa.choices import POOLINGS
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.model import Classifier, classification_loss, parameter_groups


def groups_by_name(model, **changes):
    names = {parameter: name for name, parameter in model.named_weights()}
    groups = parameter_groups(model, FinetuneConfig(**changes))
    return {names[p]: group for group in groups for p in group["params"]}


def test_every_parameter_learns_once(audio):
    model = Classifier(audio, 4, "mean")
    assert set(groups_by_name(model)) == {name for name, _ in model.named_weights()}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_encoder_given_stays_as_it_is(audio):
    model = Classifier(audio, 4, "mean")
    assert model.audio.encoder.norm.weight is not audio.encoder.norm.weight
    assert not any(parameter.requires_grad for parameter in audio.parameters())


def test_each_layer_learns_so_much_slower_than_the_one_above_it(audio):
    groups = groups_by_name(Classifier(audio, 4, "mean"), encoder_lr=1e-4, head_lr=1e-2, layer_decay=0.5)
    peaks = {
        "head.weight": 1e-2, "encoder.norm.weight": 1e-4, "encoder.blocks.1.fc1.weight": 0.5e-4,
        "encoder.blocks.0.fc1.weight": 0.25e-4, "encoder.patch_embed.weight": 0.125e-4,
        "encoder.positions": 0.125e-4,
    }  # fmt: skip
    assert {name: groups[name]["peak_lr"] for name in peaks} == pytest.approx(peaks)


def test_biases_norms_and_positions_do_not_decay(audio):
    groups = groups_by_name(Classifier(audio, 4, "mean"), weight_decay=0.1)
    for name, group in groups.items():
        plain = name.endswith((".bias", "positions")) or ".norm" in name
        assert group["weight_decay"] == (0.0 if plain else 0.1), name


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_new_head_says_nothing(audio, pooling):
    model = Classifier(audio, 4, pooling)
    logits = model(torch.randn(3, 128, 100), torch.tensor([100, 20, 1]))
    assert logits.shape == (3, 4) and not logits.any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_finite_for_the_shortest_clip(audio, pooling):
    model = Classifier(audio, 4, pooling)
    torch.nn.init.normal_(model.head.weight)
    classification_loss(model(torch.randn(2, 128, 64), torch.tensor([1, 64])), torch.eye(4)[:2], False).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_one_label_a_clip_is_cross_entropy_also_of_mixtures():
    logits, targets = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), dim=1)
    wanted = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    assert classification_loss(logits, targets, False) == pytest.approx(wanted.item())


def test_several_labels_are_binary_cross_entropy():
    logits, targets = torch.randn(5, 4), torch.from_numpy(np.random.default_rng(0).integers(0, 2, (5, 4))).float()
    p = torch.sigmoid(logits)
    wanted = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert classification_loss(logits, targets, True) == pytest.approx(wanted.item(), rel=1e-5)
    smooth = -(0.9 * p.log() + 0.1 * (1 - p).log()).mean()
    assert classification_loss(logits, torch.ones(5, 4), True, 0.2) == pytest.approx(smooth.item(), rel=1e-5)


def test_a_head_on_standardised_features_is_the_same_as_a_plain_one(audio):
    model = Classifier(audio, 4, "mean+std")
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 64, generator=generator), torch.randn(4, generator=generator)
    shift, scale = torch.randn(64, generator=generator), torch.rand(64, generator=generator) + 0.5
    model.start_from(weight, bias, shift, scale)
    log_mel, frames = torch.randn(3, 128, 64), torch.tensor([64, 30, 64])
    logits, plain = model(log_mel, frames), model.plain_head()
    torch.testing.assert_close(logits, (model.features(log_mel, frames) - shift) / scale @ weight.T + bias)
    torch.testing.assert_close(logits, F.linear(model.features(log_mel, frames), plain["weight"], plain["bias"]))
