"""Probes: nothing of a test fold is used, chance stays chance, and mistakes in labels are named."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from ajepa.errors import UserError
from ajepa.evaluation.probe import labels_and_folds, probe


@dataclasses.dataclass
class Rows:
    """Stands for a dataset: the two columns a probe reads."""

    labels: list
    fold: list
    path: str = "shards"
    label_names: tuple = ("a", "b", "c")

    def read_columns(self, columns):
        return pa.table({"labels": pa.array(self.labels, pa.list_(pa.int32())), "fold": self.fold})


def data(n: int = 150, signal: float = 3.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(size=(n, 10))
    features[np.arange(n), labels] += signal
    return features, labels, rng.permutation(n) % 5


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_separable_features_score_high(protocol):
    result = probe(*data(), protocol)
    assert result.mean > 0.9 and len(result.fold_accuracy) == 5


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_noise_stays_at_chance(protocol):
    means = [probe(*data(signal=0.0, seed=s), protocol).mean for s in range(5)]
    assert abs(np.mean(means) - 1 / 3) < 0.08


def test_predictions_are_those_the_accuracy_counts():
    features, labels, folds = data(signal=1.0)
    result = probe(features, labels, folds)
    by_fold = [(result.predictions[folds == f] == labels[folds == f]).mean() for f in range(5)]
    assert by_fold == pytest.approx(result.fold_accuracy)


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_labels_of_a_test_fold_do_not_change_its_predictions(protocol):
    features, labels, folds = data(signal=1.0)
    shuffled = labels.copy()
    shuffled[folds == 2] = (labels[folds == 2] + 1) % 3
    a, b = probe(features, labels, folds, protocol), probe(features, shuffled, folds, protocol)
    assert (a.predictions[folds == 2] == b.predictions[folds == 2]).all()


def test_the_scale_of_a_feature_does_not_matter():
    features, labels, folds = data(signal=1.0)
    a, b = probe(features, labels, folds), probe(features * 1000 + 5, labels, folds)
    assert a.mean == pytest.approx(b.mean, abs=0.02)


def test_given_folds_are_used():
    labels, folds = labels_and_folds(Rows([[0], [1], [0], [1]] * 3, [1, 1, 2, 2] * 2 + [3] * 4))
    assert folds.tolist() == [1, 1, 2, 2] * 2 + [3] * 4 and labels.tolist() == [0, 1, 0, 1] * 3


def test_missing_folds_are_drawn_stratified_and_repeatably():
    rows = Rows([[i % 3] for i in range(60)], [-1] * 60)
    labels, folds = labels_and_folds(rows)
    assert (folds == labels_and_folds(rows)[1]).all()
    assert {(f, c): ((folds == f) & (labels == c)).sum() for f in range(5) for c in range(3)} == {
        (f, c): 4 for f in range(5) for c in range(3)
    }


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (Rows([[0], []] * 10, [1, 2] * 10), "10 of 20 clips in 'shards' have no label"),
        (Rows([[0], [0, 1]] * 10, [1, 2] * 10), "10 clips have several labels"),
        (Rows([[0]] * 20, [1, 2] * 10), "the same label"),
        (Rows([[0], [1]] * 10, [1, 2] * 10), "at least three folds"),
        (Rows([[0]] * 20 + [[1]] * 3, [-1] * 23), "class 'b' has 3 clips"),
    ],
)
def test_mistakes_in_labels_are_named(rows, match):
    with pytest.raises(UserError, match=match):
        labels_and_folds(rows)
