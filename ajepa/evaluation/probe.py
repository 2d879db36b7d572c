"""Probes on frozen features: every choice is made on the validation part, the test part gives the score alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ajepa.choices import Protocol
from ajepa.evaluation import heads
from ajepa.evaluation.heads import Features
from ajepa.evaluation.knn import neighbour_scores
from ajepa.evaluation.linear import STRENGTHS, LinearProbe, fit_path
from ajepa.evaluation.metrics import (
    accuracy,
    accuracy_replicates,
    d_prime,
    is_saturated,
    multi_label_scores,
    nanmean,
    precision_replicates,
    selection_score,
)
from ajepa.evaluation.splits import Split, Splits
from ajepa.shards.labels import Labels

PATIENCE = 3  # L2 strengths in a row, ever weaker, that may do worse before the search ends


@dataclass(frozen=True)
class ProbeResult:
    """Scores of every tested clip by the probe that did not see it, part after part."""

    clips: np.ndarray  # [m] indices
    part: np.ndarray  # [m] number of the part
    scores: np.ndarray  # [m, C]
    targets: np.ndarray  # [m, C] bool
    multi_label: bool
    chosen: tuple[dict[str, Any], ...]  # by part: what validation chose
    validation: float  # accuracy or mAP on the validation parts, mean over parts

    @property
    def metric(self) -> str:
        return "mAP" if self.multi_label else "accuracy"

    @property
    def fold_scores(self) -> list[float]:
        """Accuracy or mAP by part."""
        return [self._score(self.part == number) for number in range(len(self.chosen))]

    @property
    def mean(self) -> float:
        """Mean over parts."""
        return float(np.mean(self.fold_scores))

    def metrics(self) -> dict[str, float]:
        """accuracy, or mAP, AUC, d' and the number of classes without a positive test clip; mean over parts."""
        if not self.multi_label:
            return {"accuracy": self.mean}
        parts = [multi_label_scores(self.scores[rows], self.targets[rows]) for rows in self._parts()]
        auc = nanmean(np.array([p.mean_auc for p in parts]))
        return {
            "mAP": nanmean(np.array([p.mean_average_precision for p in parts])),
            "AUC": auc,
            "d_prime": d_prime(auc),
            "classes_left_out": float((~self.targets.any(axis=0)).sum()),
        }

    def average_precision(self) -> np.ndarray:
        """[C] mean over the parts that have a positive clip of the class; NaN where none has."""
        parts = [multi_label_scores(self.scores[rows], self.targets[rows]).average_precision for rows in self._parts()]
        return np.array([nanmean(values) for values in np.stack(parts, axis=1)])

    def replicates(self, weights: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Accuracy or mAP in bootstrap replicates [replicates], mean over parts.

        Args:
            weights: [m, replicates] how often each tested clip counts (metrics.resamples).
            place: [n] row of weights by clip.
        """
        values = []
        for rows in self._parts():
            own = weights[place[self.clips[rows]]]
            if self.multi_label:
                values.append(precision_replicates(self.scores[rows], self.targets[rows], own))
            else:
                right = self.scores[rows].argmax(axis=1) == self.targets[rows].argmax(axis=1)
                values.append(accuracy_replicates(right.astype(np.float32), own))
        return np.nanmean(values, axis=0)  # a replicate may hold no clip of a small part

    def _parts(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.part == number) for number in range(len(self.chosen))]

    def _score(self, rows: np.ndarray) -> float:
        scores, targets = self.scores[rows], self.targets[rows]
        if self.multi_label:
            return multi_label_scores(scores, targets).mean_average_precision
        return accuracy(scores.argmax(axis=1), targets.argmax(axis=1))


def probe(
    features: Features,
    labels: Labels,
    splits: Splits,
    protocol: Protocol = "linear",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Score features by a probe on every part of the splits.

    Args:
        seed: of what is trained in minibatches (layers weighted, patches attended to); the rest has none.

    Raises:
        ValueError: kNN of anything but one vector a clip.
    """
    if protocol == "knn" and not features.plain:
        raise ValueError("kNN takes one vector a clip")
    probe_part = _knn if protocol == "knn" else _linear if features.plain else _head
    parts = [probe_part(features, labels, part, seed, device) for part in splits.parts]
    clips = np.concatenate([part.test for part in splits.parts])
    return ProbeResult(
        clips=clips,
        part=np.repeat(np.arange(len(parts)), [len(part.test) for part in splits.parts]),
        scores=np.concatenate([scores for scores, _, _ in parts]),
        targets=labels.table[clips],
        multi_label=labels.multi_label,
        chosen=tuple(chosen for _, chosen, _ in parts),
        validation=float(np.mean([score for _, _, score in parts])),
    )


_Outcome = tuple[np.ndarray, dict[str, Any], float]  # test scores, what was chosen, score on validation


def choose_linear(
    features: np.ndarray,
    targets: np.ndarray,
    multi_label: bool,
    train: np.ndarray,
    validation: np.ndarray,
    final: np.ndarray,
    device: torch.device | str = "cpu",
) -> tuple[LinearProbe, float]:
    """The linear probe of the clips `final`, its L2 strength chosen with `train` on `validation`, and its score there.

    Of equal scores the one with the lower loss on `validation` is chosen: a small part may be all right by luck under a
    penalty that is far too strong. The search ends where it is settled: a weaker penalty could only scale logits.

    Args:
        features: [n, D] of all clips.
        targets: [n, C] bool.
        train, validation, final: indices of clips; `final` may be `train`.
    """
    asked = features[validation]
    best, chosen, worse = (-np.inf, -np.inf), None, 0
    for model in fit_path(features[train], targets[train], multi_label, device=device):
        score = selection_score(model.scores(asked), targets[validation], multi_label)
        if chosen is None or score > best:
            best, chosen, worse = score, model, 0
        else:
            worse += 1
        if worse == PATIENCE or is_saturated(score):
            break
    assert chosen is not None
    if len(final) != len(train):
        path = [strength for strength in STRENGTHS if strength >= chosen.strength]
        *_, chosen = fit_path(features[final], targets[final], multi_label, path, device)
    return chosen, best[0]


def _linear(features: Features, labels: Labels, part: Split, seed: int, device: torch.device | str) -> _Outcome:
    values, multi_label = features.values, labels.multi_label
    model, score = choose_linear(values, labels.table, multi_label, part.train, part.validation, part.all_train, device)
    return model.scores(values[part.test]), {"l2": model.strength}, score


def _knn(features: Features, labels: Labels, part: Split, seed: int, device: torch.device | str) -> _Outcome:
    values, targets, multi_label = features.values, labels.table, labels.multi_label
    found = neighbour_scores(values[part.train], targets[part.train], values[part.validation])
    score = {
        count: selection_score(scores, targets[part.validation], multi_label)[0] for count, scores in found.items()
    }
    count = max(score, key=lambda c: score[c])  # the first of equals
    rows = part.all_train
    scores = neighbour_scores(values[rows], targets[rows], values[part.test], (count,))[count]
    return scores, {"neighbours": count}, score[count]


def _head(features: Features, labels: Labels, part: Split, seed: int, device: torch.device | str) -> _Outcome:
    targets, multi_label = labels.table, labels.multi_label
    best, kept = (-np.inf, -np.inf), None
    for setting, head in heads.fit_decays(features, targets, multi_label, part.train, part.validation, seed, device):
        score = selection_score(head.scores(features, part.validation), targets[part.validation], multi_label)
        if kept is None or score > best:
            best, kept = score, (setting, head)
    assert kept is not None
    setting, head = kept
    if part.refit:
        head = heads.refit(features, targets, multi_label, part.all_train, setting, seed, device)
    return head.scores(features, part.test), {"decay": setting.decay, "steps": setting.steps}, best[0]
