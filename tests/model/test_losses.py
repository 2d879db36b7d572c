"""The losses equal their equations, and the targets are normalised as stated."""

import pytest
import torch

from ajepa.model.losses import normalise_targets, prediction_errors


def smooth_l1_by_equation(prediction: torch.Tensor, target: torch.Tensor, beta: float) -> float:
    """Sec. 4.5, written out: mean over targets of the mean over dimensions."""
    total = 0.0
    for z_hat, z in zip(prediction.flatten(0, 1).tolist(), target.flatten(0, 1).tolist(), strict=True):
        terms = []
        for a, b in zip(z_hat, z, strict=True):
            d = abs(a - b)
            terms.append(0.5 * d * d / beta if d < beta else d - beta / 2)
        total += sum(terms) / len(terms)
    return total / prediction.flatten(0, 1).shape[0]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_smooth_l1_equals_the_equation(beta):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (2 * torch.randn(2, 5, 6, generator=generator) for _ in range(2))
    expected = smooth_l1_by_equation(prediction, target, beta)
    assert prediction_errors(prediction, target, "smooth_l1", beta).mean().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"), [("smooth_l1", (0.5 + 2.5) / 2), ("l1", 2.0), ("mse", 5.0), ("cosine", 1 - 2 / 20**0.5)]
)
def test_losses_by_hand(kind, expected):
    prediction, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 0.0]]])
    if kind == "smooth_l1":
        assert prediction_errors(prediction, target, kind).mean().item() == pytest.approx(expected)
    elif kind == "cosine":
        assert prediction_errors(prediction, target, kind).mean().item() == pytest.approx(1 - 2 / (10**0.5 * 2))
    else:
        assert prediction_errors(prediction, target, kind).mean().item() == pytest.approx(expected)


def test_a_perfect_prediction_costs_nothing():
    target = torch.randn(2, 3, 8)
    for kind in ("smooth_l1", "l1", "mse", "cosine"):
        assert prediction_errors(target, target, kind).mean().item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_is_compared_in_float32():
    prediction = torch.full((1, 1, 4096), 1e-3, dtype=torch.bfloat16)
    errors = prediction_errors(prediction, torch.zeros_like(prediction), "mse")
    assert errors.dtype == torch.float32


def test_targets_have_zero_mean_and_unit_variance_per_patch():
    target = normalise_targets(3 + 5 * torch.randn(2, 4, 64))
    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(dim=-1, unbiased=False), torch.ones(2, 4), atol=1e-3, rtol=0)


def test_several_layers_are_averaged_after_normalisation():
    layers = [torch.randn(1, 2, 16), 100 * torch.randn(1, 2, 16)]
    expected = (normalise_targets(layers[0]) + normalise_targets(layers[1])) / 2
    torch.testing.assert_close(normalise_targets(layers), expected)


def test_instance_normalised_targets_take_off_what_all_patches_share():
    layers = [torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    shared = [layer + 5 * torch.arange(16.0) for layer in layers]
    # What is taken off is up to 75, and float32 keeps 1e-5 of that.
    found, wanted = (normalise_targets(x, "instance") for x in (shared, layers))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def standardised(x: torch.Tensor, dim: int) -> torch.Tensor:
        return (x - x.mean(dim, keepdim=True)) / (x.var(dim, unbiased=False, keepdim=True) + 1e-5).sqrt()

    expected = standardised((standardised(layers[0], 1) + standardised(layers[1], 1)) / 2, -1)
    torch.testing.assert_close(normalise_targets(layers, "instance"), expected, rtol=1e-4, atol=1e-5)
