"""Metrics against scikit-learn, and intervals against what they promise."""

import numpy as np
import pytest
from helpers.properties import examples
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ajepa.evaluation.metrics import (
    accuracy_replicates,
    class_scores,
    confusion,
    d_prime,
    interval,
    multi_label_scores,
    precision_replicates,
    resamples,
)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 8), st.integers(2, 50), st.floats(0.02, 0.9))
@examples(150)
def test_average_precision_and_auc_are_scikit_learns(seed, n, classes, levels, share):
    """Ties, and classes without a positive or a negative clip, are among the cases."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, classes)) < share
    scores = rng.integers(0, levels, (n, classes)) / levels
    ours = multi_label_scores(scores, targets)
    there = [c for c in range(classes) if targets[:, c].any()]
    for c in range(classes):
        if c not in there:
            assert np.isnan(ours.average_precision[c])
            continue
        assert ours.average_precision[c] == pytest.approx(
            average_precision_score(targets[:, c], scores[:, c]), abs=1e-6
        )
        if targets[:, c].all():
            assert np.isnan(ours.auc[c])
        else:
            assert ours.auc[c] == pytest.approx(roc_auc_score(targets[:, c], scores[:, c]), abs=1e-6)
    assert ours.left_out == classes - len(there)
    if there:
        wanted = average_precision_score(targets[:, there], scores[:, there], average="macro")
        assert ours.mean_average_precision == pytest.approx(wanted, abs=1e-6)


def test_d_prime_is_audiosets():
    assert d_prime(0.5) == pytest.approx(0)
    assert d_prime(0.959) == pytest.approx(2.46, abs=0.01)  # AudioSet's baseline: AUC 0.959, d' 2.452


def test_the_confusion_matrix_gives_recall_and_precision():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    table = confusion(predicted, labels, 4)
    assert table.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = class_scores(table)
    assert scores.recall[:3] == pytest.approx([2 / 3, 1, 0])
    assert scores.precision[:2] == pytest.approx([2 / 3, 2 / 3])


def test_replicates_of_equal_weights_are_the_score_itself():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 4)) < 0.4, rng.random((50, 4))
    once = np.ones((50, 3), np.float32)
    wanted = multi_label_scores(scores, targets).mean_average_precision
    assert precision_replicates(scores, targets, once) == pytest.approx(wanted, abs=1e-5)
    assert accuracy_replicates(np.array([1, 0, 1, 1], np.float32), np.ones((4, 2), np.float32)) == pytest.approx(0.75)


def test_a_replicate_counts_a_clip_as_often_as_it_was_drawn():
    rng = np.random.default_rng(1)
    targets, scores = rng.random((30, 3)) < 0.4, rng.permutation(90).reshape(30, 3) / 90
    weights = resamples(30, 5, seed=2)
    assert np.asarray(weights.sum(axis=0)).ravel() == pytest.approx([30] * 5)
    found = precision_replicates(scores, targets, weights)
    for i in range(5):
        rows = np.repeat(np.arange(30), np.asarray(weights)[:, i].astype(int))
        assert found[i] == pytest.approx(
            multi_label_scores(scores[rows], targets[rows]).mean_average_precision, abs=1e-5
        )


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(3), 0
    for trial in range(100):
        right = (rng.random(200) < 0.7).astype(np.float32)
        low, high = interval(accuracy_replicates(right, resamples(200, 400, seed=trial)))
        hits += low <= 0.7 <= high
    assert 88 <= hits <= 100
