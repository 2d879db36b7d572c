"""The solver of the linear probe: how many products with the features it takes, and that it ends at the minimum."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.overrides import TorchFunctionMode

from ajepa.evaluation.linear import STRENGTHS, fit_path
from ajepa.evaluation.probe import choose_linear


class Products(TorchFunctionMode):
    """Counts how many columns are multiplied by a matrix of n rows, or of n columns."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.columns = n, 0

    def __torch_function__(self, function: Callable, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("matmul", "__matmul__") and self.n in args[0].shape:
            self.columns += args[1].shape[1]
        return function(*args, **(kwargs or {}))


def several_labels(n: int = 1000, width: int = 64, classes: int = 30, noise: float = 1.0, seed: int = 0):
    """Features that say which labels a clip has: every class is separable."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, classes)) < np.clip(0.3 / np.arange(1, classes + 1) ** 0.8, 0.02, 0.2)
    return labels @ rng.normal(size=(classes, width)) + noise * rng.normal(size=(n, width)), labels


def one_label(n: int = 1000, width: int = 64, classes: int = 12, signal: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    return rng.normal(size=(n, width)) + signal * rng.normal(size=(classes, width))[label], np.eye(classes)[label] > 0


CASES = {
    "several labels": (*several_labels(), True),
    "several labels, nearly": (*several_labels(noise=2.0), True),
    "one label": (*one_label(), False),
    "one label, nearly": (*one_label(signal=0.3), False),
}
MOST = {"several labels": 16, "several labels, nearly": 18, "one label": 20, "one label, nearly": 45}  # a strength


@pytest.mark.parametrize("case", CASES)
def test_a_path_takes_few_products_with_the_features_where_classes_are_separable(case):
    features, labels, several = CASES[case]
    with Products(len(features)) as products:
        list(fit_path(features, labels, several))
    assert products.columns < MOST[case] * labels.shape[1] * len(STRENGTHS)


def objective(values: np.ndarray, targets: np.ndarray, weight: np.ndarray, bias: float, strength: float) -> float:
    signed = np.where(targets, -1, 1) * (values @ weight + bias)
    return np.logaddexp(0, signed).mean() + strength / 2 * (weight**2).sum()


@pytest.mark.parametrize("strength", [1e-2, 1e-4, 1e-5])
def test_the_minimum_is_reached_where_classes_are_separable(strength):
    features, labels, _ = CASES["several labels, nearly"]
    *_, probe = fit_path(features, labels, True, [s for s in STRENGTHS if s > strength] + [strength])
    scaler = StandardScaler().fit(features)
    known, weight = scaler.transform(features), probe.weight.double().numpy() * scaler.scale_[:, None]
    bias = probe.bias.double().numpy() + scaler.mean_ @ probe.weight.double().numpy()
    for c in range(0, labels.shape[1], 10):
        best = LogisticRegression(C=1 / (strength * len(known)), tol=1e-10, max_iter=20000).fit(known, labels[:, c])
        least = objective(known, labels[:, c], best.coef_[0], best.intercept_[0], strength)
        share = labels[:, c].mean()
        prior = -share * np.log(share) - (1 - share) * np.log(1 - share)
        reached = objective(known, labels[:, c], weight[:, c], bias[c], strength)
        assert reached - least < 1e-4 * least + 1e-6 * prior


def test_a_class_is_fitted_as_if_it_were_alone():
    """Classes are done after different numbers of iterations and no longer touched: what the others do is no matter."""
    features, labels, _ = CASES["several labels, nearly"]
    together = list(fit_path(features, labels, True, (1.0, 0.01, 1e-3)))
    for c in (0, 7, 29):
        for one, all_ in zip(fit_path(features, labels[:, [c]], True, (1.0, 0.01, 1e-3)), together, strict=True):
            alone, among = one.scores(features)[:, 0], all_.scores(features)[:, c]
            assert np.abs(alone - among).max() < 0.02 * np.abs(alone).max()


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-5])
@pytest.mark.parametrize("alone", [True, False])
def test_the_minimum_is_reached_with_fewer_clips_than_dimensions(strength, alone):
    """As with pooled bands on a small set; for one strength as for the last of a path."""
    features, labels = one_label(n=120, width=600, signal=0.3)
    *_, probe = fit_path(features, labels, False, [s for s in STRENGTHS if s > strength and not alone] + [strength])
    scaler = StandardScaler().fit(features)
    known, label = scaler.transform(features), labels.argmax(axis=1)
    best = LogisticRegression(C=1 / (strength * len(known)), tol=1e-10, max_iter=20000).fit(known, label)

    def reached(logits: np.ndarray, weight: np.ndarray) -> float:
        loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(label)), label]
        return loss.mean() + strength / 2 * (weight**2).sum()

    weight = probe.weight.double().numpy() * scaler.scale_[:, None]
    ours, least = reached(probe.scores(features), weight), reached(best.decision_function(known), best.coef_)
    assert ours - least < 1e-3 * least + 1e-5 * np.log(labels.shape[1])


def test_the_probe_of_all_clips_is_as_good_as_that_of_the_ones_it_was_chosen_with():
    """A start from the chosen probe once led astray where penalties are weak and dimensions many."""
    for seed in range(8):
        features, labels = one_label(n=160, width=800, classes=4, signal=0.25, seed=seed)
        rows = np.arange(160)
        model, _ = choose_linear(features, labels, False, rows[:80], rows[80:110], rows[:110])
        *_, path = fit_path(features[:110], labels[:110], False, [s for s in STRENGTHS if s >= model.strength])
        right = [(m.scores(features[110:]).argmax(1) == labels[110:].argmax(1)).mean() for m in (model, path)]
        assert right[0] == right[1] > 0.5


@pytest.mark.parametrize("several", [False, True])
def test_a_class_without_a_clip_ends_as_well(several):
    features, labels = one_label()
    labels[:, 3] = False
    labels[~labels.any(axis=1), 0] = True
    with Products(len(features)) as products:
        *_, probe = fit_path(features, labels, several)
    scores = probe.scores(features)
    assert np.isfinite(scores).all() and (scores.argmax(axis=1) != 3).all()
    assert products.columns < 20 * labels.shape[1] * len(STRENGTHS)


def test_a_penalty_is_not_weakened_for_ever_where_all_is_right():
    """Ties go to the lower loss on validation clips, which falls as long as the penalty does."""
    features, labels = one_label()
    rows = np.arange(len(features))
    probe, reached = choose_linear(features, labels, False, rows[:800], rows[800:], rows[:800])
    assert reached == 1 and probe.strength >= 0.01
