"""Probes: nothing of a test part is used, chance stays chance, and the linear layer is the penalised optimum."""

import dataclasses

import numpy as np
import pytest
from helpers.labels import labels_from_table
from helpers.properties import NIGHTLY, nightly
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ajepa.evaluation import heads
from ajepa.evaluation.heads import Features
from ajepa.evaluation.linear import fit_path
from ajepa.evaluation.probe import probe
from ajepa.evaluation.splits import Split, Splits


def data(n: int = 150, signal: float = 3.0, seed: int = 0):
    """(features, targets, splits of five folds)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    values = rng.normal(size=(n, 10))
    values[np.arange(n), labels] += signal
    return (
        Features(values),
        labels_from_table(("a", "b", "c"), np.eye(3, dtype=bool)[labels]),
        splits(rng.permutation(n) % 5),
    )


def splits(folds: np.ndarray) -> Splits:
    parts = [
        Split(
            np.flatnonzero((folds != f) & (folds != (f + 1) % 5)),
            np.flatnonzero(folds == (f + 1) % 5), np.flatnonzero(folds == f), refit=True, fold=f,
        )
        for f in range(5)
    ]  # fmt: skip
    return Splits(tuple(parts), "five folds", drawn=False)


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_separable_features_score_high(protocol):
    result = probe(*data(), protocol)
    assert result.mean > 0.85 and len(result.fold_scores) == 5 and result.metrics() == {"accuracy": result.mean}


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_noise_stays_at_chance(protocol):
    means = [probe(*data(signal=0.0, seed=s), protocol).mean for s in range(5)]
    assert abs(np.mean(means) - 1 / 3) < 0.08


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_labels_of_a_test_part_do_not_change_its_scores(protocol):
    features, targets, five = data(signal=1.0)
    one = dataclasses.replace(five, parts=five.parts[2:3])
    moved = targets.table.copy()
    moved[one.parts[0].test] = np.roll(moved[one.parts[0].test], 1, axis=1)
    a, b = (
        probe(features, targets, one, protocol),
        probe(features, labels_from_table(targets.names, moved), one, protocol),
    )
    assert np.array_equal(a.scores, b.scores) and a.mean != b.mean


def test_the_scale_of_a_feature_does_not_matter():
    features, targets, five = data(signal=1.0)
    a, b = probe(features, targets, five), probe(Features(features.values * 1000 + 5), targets, five)
    assert a.mean == pytest.approx(b.mean, abs=0.02)


@pytest.mark.parametrize("wide", [False, True])
def test_the_linear_layer_is_that_of_logistic_regression(wide):
    """scikit-learn's C is 1 / (strength * n)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    values = rng.normal(size=(120, 300 if wide else 12)) + labels[:, None] * rng.normal(size=300 if wide else 12)
    (ours,) = fit_path(values, np.eye(4, dtype=bool)[labels], False, (0.03,))
    known = StandardScaler().fit_transform(values)
    theirs = LogisticRegression(C=1 / (0.03 * 120), tol=1e-8, max_iter=5000).fit(known, labels)
    scores, wanted = ours.scores(values), theirs.decision_function(known)
    scores, wanted = (s - s.mean(axis=1, keepdims=True) for s in (scores, wanted))
    assert np.abs(scores - wanted).max() < 0.05 * np.abs(wanted).max()
    assert (scores.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.98


def test_several_labels_are_so_many_logistic_regressions():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 8))
    targets = values[:, :3] + rng.normal(size=(200, 3)) > 0.3
    (ours,) = fit_path(values, targets, True, (0.01,))
    known = StandardScaler().fit_transform(values)
    for c in range(3):
        theirs = LogisticRegression(C=1 / (0.01 * 200), tol=1e-8, max_iter=5000).fit(known, targets[:, c])
        wanted = theirs.decision_function(known)
        assert np.abs(ours.scores(values)[:, c] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_several_labels_are_scored_by_average_precision():
    rng = np.random.default_rng(2)
    labels = rng.random((200, 4)) < 0.3
    labels[:, 0] |= ~labels.any(axis=1)
    values = labels @ rng.normal(size=(4, 10)) + 0.3 * rng.normal(size=(200, 10))
    result = probe(Features(values), labels_from_table(tuple("abcd"), labels), splits(np.arange(200) % 5))
    assert result.metric == "mAP" and result.mean > 0.8
    assert set(result.metrics()) == {"mAP", "AUC", "d_prime", "classes_left_out"}


@pytest.mark.parametrize("kind", ["layers", "patches"])
def test_learned_poolings_find_what_only_they_can_see(kind, monkeypatch):
    """The label is in one layer of three, or in the loud patch of ten."""
    monkeypatch.setattr(heads, "CHECKS", nightly(heads.CHECKS))  # a fifth of the longest training
    rng = np.random.default_rng(3)
    labels = np.arange(300) % 3
    targets = labels_from_table(("a", "b", "c"), np.eye(3, dtype=bool)[labels])
    if kind == "layers":
        values = rng.normal(size=(300, 3, 8)).astype(np.float32)
        values[np.arange(300), 1, labels] += 4
        features = Features(values)
    else:
        values = rng.normal(size=(300, 10, 8)).astype(np.float16)
        values[np.arange(300), rng.integers(0, 10, 300), labels] += 6
        features = Features(values, np.ones((300, 10), bool))
    for seed in (0, 1):
        five = splits(rng.permutation(300) % 5)
        tested = five if NIGHTLY else dataclasses.replace(five, parts=five.parts[:1])
        assert probe(features, targets, tested, seed=seed).mean > 0.8
