"""Probes on frozen features: accuracy over folds, with every choice made inside the training folds."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset

Protocol = Literal["linear", "knn"]
GRID: dict[Protocol, tuple[float, ...]] = {
    "linear": (0.001, 0.01, 0.1, 1.0),  # inverse L2 strength C of logistic regression
    "knn": (1, 3, 5, 10, 20),  # neighbours
}


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy by fold, and every clip's prediction made by the probe that did not see its fold."""

    fold_accuracy: np.ndarray  # [folds]
    predictions: np.ndarray  # [n] label ids

    @property
    def mean(self) -> float:
        return float(self.fold_accuracy.mean())

    @property
    def std(self) -> float:
        return float(self.fold_accuracy.std())


def labels_and_folds(dataset: ShardDataset, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(label id [n], fold [n]) in storage order; five stratified folds are drawn where the dataset has none.

    Raises:
        UserError: clips without a label or with several, fewer than two classes, or a single fold.
    """
    table = dataset.read_columns(["labels", "fold"])
    counts = np.array([len(row) for row in table["labels"].to_pylist()])
    if (counts == 0).any():
        raise UserError(
            f"{int((counts == 0).sum())} of {len(counts)} clips in {dataset.path!r} have no label: "
            "a probe needs one each (preprocess with --labels-from-folders, or a manifest with labels)"
        )
    if (counts > 1).any():
        raise UserError(f"{int((counts > 1).sum())} clips have several labels; this probe takes exactly one")
    labels = np.array([row[0] for row in table["labels"].to_pylist()])
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError(f"all clips in {dataset.path!r} have the same label: nothing to tell apart")
    folds = table["fold"].to_numpy()
    if (folds < 0).any():
        if sizes.min() < 5:
            name = dataset.label_names[classes[sizes.argmin()]]
            raise UserError(f"class {name!r} has {sizes.min()} clips, five folds need at least 5 of each")
        folds = np.empty(len(labels), np.int64)
        splitter = StratifiedKFold(5, shuffle=True, random_state=seed)
        for number, (_, test) in enumerate(splitter.split(labels, labels)):
            folds[test] = number
    if len(np.unique(folds)) < 3:
        raise UserError("a probe needs at least three folds: one to test, one to choose on, one to train")
    return labels, folds


def probe(features: np.ndarray, labels: np.ndarray, folds: np.ndarray, protocol: Protocol = "linear") -> ProbeResult:
    """Cross-validated accuracy of a probe on frozen features [n, D].

    For each fold the setting is chosen on the fold after it, with training on the rest, and the probe with that
    setting is trained on all folds but its own. The test fold is used for nothing else.
    """
    numbers = np.unique(folds)
    predictions = np.empty(len(labels), labels.dtype)
    accuracy = []
    for i, fold in enumerate(numbers):
        test, validation = folds == fold, folds == numbers[(i + 1) % len(numbers)]
        inner = ~test & ~validation
        scores = [
            _fit(protocol, value, features[inner], labels[inner]).score(features[validation], labels[validation])
            for value in GRID[protocol]
        ]
        best = GRID[protocol][int(np.argmax(scores))]
        predictions[test] = _fit(protocol, best, features[~test], labels[~test]).predict(features[test])
        accuracy.append(float((predictions[test] == labels[test]).mean()))
    return ProbeResult(np.array(accuracy), predictions)


def _fit(protocol: Protocol, value: float, features: np.ndarray, labels: np.ndarray) -> Pipeline:
    if protocol == "linear":
        model = make_pipeline(StandardScaler(), LogisticRegression(C=value, max_iter=1000, tol=1e-3))
    else:
        neighbours = min(int(value), len(labels))
        model = make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(neighbours, weights="distance"))
    return model.fit(features, labels)
