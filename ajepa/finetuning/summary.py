"""Results of a fine-tuning: beside its own linear probe, by fold and seed, and class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ajepa.evaluation.metrics import class_scores, confusion, multi_label_scores
from ajepa.evaluation.tables import markdown_table
from ajepa.finetuning.run import Result
from ajepa.shards.labels import Labels

FINETUNED: Final = "fine-tuned"
PROBE = "linear probe"
FROM_SCRATCH, RANDOM_PROBE = "supervised from scratch", "linear probe of random init"


@dataclass(frozen=True)
class Row:
    """Test scores of one kind of model."""

    model: str
    scores: dict[tuple[int, int | None], float]  # by (seed, fold)

    @property
    def by_seed(self) -> list[float]:
        """Mean over folds, one a seed."""
        seeds = sorted({seed for seed, _ in self.scores})
        return [float(np.mean([v for (s, _), v in self.scores.items() if s == seed])) for seed in seeds]

    @property
    def by_fold(self) -> dict[int | None, float]:
        """Mean over seeds, one a fold."""
        folds = dict.fromkeys(fold for _, fold in self.scores)
        return {fold: float(np.mean([v for (_, f), v in self.scores.items() if f == fold])) for fold in folds}

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))


def rows_of(results: Sequence[Result], from_scratch: bool = False) -> list[Row]:
    """The trained models and, where it was asked for, the linear probe of the frozen encoder on the same parts."""
    trained, probed = (FROM_SCRATCH, RANDOM_PROBE) if from_scratch else (FINETUNED, PROBE)
    probes = {(result.seed, result.fold): result.probe for result in results if result.probe is not None}
    tuned = Row(trained, {(result.seed, result.fold): result.test for result in results})
    return [tuned, Row(probed, probes)] if probes else [tuned]


def summary_table(rows: Sequence[Row], metric: str) -> str:
    """A line a model: mean and standard deviation over folds, and over seeds where there are several; each fold."""
    folds = [fold for fold in rows[0].by_fold if fold is not None]
    lines: list[list[object]] = []
    for row in rows:
        seeds = row.by_seed
        spread = f" ± {np.std(list(row.by_fold.values())):.3f}" if len(folds) > 1 else ""
        lines.append([
            f"{row.model} ({len(seeds)} seeds)" if len(seeds) > 1 else row.model,
            f"{row.mean:.3f}{spread}",
            f"± {np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else None,
            *(row.by_fold[fold] for fold in folds),
        ])  # fmt: skip
    return markdown_table(["model", metric, "over seeds", *(f"fold {fold}" for fold in folds)], lines)


def class_table(
    labels: Labels, names: Sequence[str], predictions: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[dict[str, Any]]:
    """Each class over the test clips of all fits (rows [n], logits [n, C] each): clips, and precision and recall, or
    average precision where clips have several labels. None for a class without clips. Clips
    tested by several seeds count for each of them."""
    rows = np.concatenate([rows for rows, _ in predictions])
    logits = np.concatenate([logits for _, logits in predictions])
    targets = labels.targets(rows) > 0
    support = targets.sum(axis=0).tolist()
    measured: dict[str, Sequence[float]]
    if labels.multi_label:
        measured = {"average precision": multi_label_scores(logits, targets).average_precision.tolist()}
    else:
        found = logits.argmax(axis=1)
        scores = class_scores(confusion(found, targets.argmax(axis=1), len(names)))
        measured = {"recall": scores.recall.tolist(), "precision": scores.precision.tolist()}
    return [
        {"class": name, "clips": support[c]}
        | {what: round(float(values[c]), 4) if support[c] else None for what, values in measured.items()}
        for c, name in enumerate(names)
    ]
