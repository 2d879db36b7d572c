"""An encoder beside the baselines that give its score a meaning, as one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from ajepa.choices import Protocol
from ajepa.evaluation.heads import Features
from ajepa.evaluation.metrics import REPLICATES, interval, resamples
from ajepa.evaluation.probe import ProbeResult, probe
from ajepa.evaluation.splits import Splits
from ajepa.evaluation.tables import markdown_table
from ajepa.shards.labels import Labels

PRETRAINED: Final = "pretrained"
RANDOM: Final = "random init"
MEL: Final = "log-mel statistics"


@dataclass(frozen=True)
class Source:
    """One encoder's features, or a baseline's."""

    kind: str  # PRETRAINED, RANDOM or MEL
    label: str  # which encoder, or which seed
    features: Callable[[], Mapping[str, Features]]  # by pooling; called when it is their turn
    seeds: tuple[int, ...]  # of the drawn parts and of heads that start at random, one probe each


@dataclass(frozen=True)
class Run:
    """One probe of a source."""

    label: str
    seed: int
    score: float  # mean over folds
    fold_scores: list[float]
    validation: float
    metrics: dict[str, float]
    chosen: tuple[dict[str, Any], ...]  # by fold


@dataclass(frozen=True)
class Row:
    """Scores of one kind of features under one pooling."""

    features: str
    pooling: str
    dimension: int
    metric: str  # "accuracy" or "mAP"
    runs: list[Run]
    replicates: np.ndarray  # of the mean over runs, in a bootstrap over test clips; the same clips in every row
    first: ProbeResult | None  # the first run's predictions, of pretrained features

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval over test clips of the mean over runs."""
        return interval(self.replicates)

    @property
    def by_label(self) -> dict[str, float]:
        """Mean score of each encoder, or of each seed where there is one encoder."""
        labels = {run.label for run in self.runs}
        key = (lambda run: run.label) if len(labels) > 1 else (lambda run: f"seed {run.seed}")
        names = dict.fromkeys(key(run) for run in self.runs)
        return {name: float(np.mean([r.score for r in self.runs if key(r) == name])) for name in names}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_label.values())))

    @property
    def std(self) -> float:
        """Standard deviation (n - 1) over encoders or seeds; NaN where there is one."""
        values = list(self.by_label.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    @property
    def fold_scores(self) -> list[float]:
        """Mean over runs of each fold."""
        return np.mean([run.fold_scores for run in self.runs], axis=0).tolist()

    @property
    def validation(self) -> float:
        """What a pooling may be chosen by."""
        return float(np.mean([run.validation for run in self.runs]))

    def metrics(self) -> dict[str, float]:
        """Every metric, mean over runs."""
        return {name: float(np.mean([run.metrics[name] for run in self.runs])) for name in self.runs[0].metrics}

    def as_dict(self) -> dict[str, Any]:
        """Everything but the predictions, for JSON."""
        return {
            "features": self.features,
            "pooling": self.pooling,
            "dimension": self.dimension,
            "metric": self.metric,
            "mean": self.mean,
            "std": None if np.isnan(self.std) else self.std,
            "interval95": list(self.interval),
            "validation": self.validation,
            "metrics": self.metrics(),
            "fold_scores": self.fold_scores,
            "runs": [vars(run) for run in self.runs],
        }


def compare(
    sources: Sequence[Source],
    labels: Labels,
    splits: Mapping[int, Splits],
    protocol: Protocol,
    device: torch.device | str = "cpu",
    replicates: int = REPLICATES,
) -> Iterator[Row]:
    """Probe every source under every pooling it has; a row a kind and pooling, as soon as it is known.

    Args:
        splits: by seed; equal ones where nothing is drawn.
    """
    tested = np.unique(np.concatenate([part.test for part in next(iter(splits.values())).parts]))
    weights = resamples(len(tested), replicates)
    place = np.zeros(len(labels), np.int64)
    place[tested] = np.arange(len(tested))
    for kind in dict.fromkeys(source.kind for source in sources):
        runs: dict[str, list[Run]] = {}
        drawn: dict[str, list[np.ndarray]] = {}
        first: dict[str, ProbeResult] = {}
        sizes: dict[str, int] = {}
        for source in (s for s in sources if s.kind == kind):
            for pooling, features in source.features().items():
                sizes[pooling] = features.dimension
                for seed in _needed(source.seeds, features, splits):
                    result = probe(features, labels, splits[seed], protocol, seed, device)
                    own = Run(
                        source.label, seed, result.mean, result.fold_scores, result.validation, result.metrics(),
                        result.chosen,
                    )  # fmt: skip
                    runs.setdefault(pooling, []).append(own)
                    drawn.setdefault(pooling, []).append(result.replicates(weights, place))
                    first.setdefault(pooling, result)
        for pooling, own_runs in runs.items():
            yield Row(
                kind, pooling, sizes[pooling], first[pooling].metric, own_runs,
                np.mean(drawn[pooling], axis=0), first[pooling] if kind == PRETRAINED else None,
            )  # fmt: skip


def gain_over_random(rows: Sequence[Row], row: Row) -> str:
    """A sentence on what training gained: the row's difference to random initialisations with the same pooling, paired
    by test clip; "" where there are none."""
    other = next((r for r in rows if r.features == RANDOM and r.pooling == row.pooling), None)
    if other is None:
        return ""
    low, high = interval(row.replicates - other.replicates)
    verdict = "better" if low > 0 else "worse" if high < 0 else "not clearly different"
    return f"{row.mean - other.mean:+.3f} to random init (95% interval over clips {low:+.3f} to {high:+.3f}): {verdict}"


def _needed(seeds: tuple[int, ...], features: Features, splits: Mapping[int, Splits]) -> tuple[int, ...]:
    """The seeds that make a difference: none does for plain features on given folds."""
    varies = not features.plain or splits[seeds[0]].drawn
    return seeds if varies else seeds[:1]


def comparison_table(rows: Sequence[Row]) -> str:
    """A line a kind of features and pooling: score, its spread over encoders or seeds, its interval over clips, and
    what each encoder or seed reached."""
    multi_label = len(rows[0].metrics()) > 1
    heading = ["features", "pooling", rows[0].metric, "95% interval", *(["AUC", "d'"] if multi_label else []),
               "lowest to highest fold", "each encoder or seed", "D"]  # fmt: skip
    lines: list[list[object]] = []
    for row in rows:
        values, folds, all_metrics = list(row.by_label.values()), row.fold_scores, row.metrics()
        spread = "" if np.isnan(row.std) else f" ± {row.std:.3f}"
        lines.append([
            row.features,
            row.pooling,
            f"{row.mean:.3f}{spread}",
            f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
            *([all_metrics["AUC"], f"{all_metrics['d_prime']:.2f}"] if multi_label else []),
            f"{min(folds):.3f} to {max(folds):.3f}" if len(folds) > 1 else None,
            " ".join(f"{value:.3f}" for value in values) if len(values) > 1 else None,
            row.dimension,
        ])  # fmt: skip
    return markdown_table(heading, lines)
