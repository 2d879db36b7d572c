"""An encoder beside the baselines that give its accuracy a meaning, as one table."""

from dataclasses import dataclass

import numpy as np

from ajepa.config import Config
from ajepa.encoder import AudioEncoder
from ajepa.evaluation.features import encoder_features, mel_statistics
from ajepa.evaluation.probe import Protocol, labels_and_folds, probe
from ajepa.model.pooling import POOLINGS
from ajepa.pretrained import random_encoder
from ajepa.shards.dataset import ShardDataset

PRETRAINED, RANDOM, MEL = "pretrained", "random init", "log-mel statistics"


@dataclass(frozen=True)
class Row:
    """Probe accuracy of one kind of features under one pooling."""

    features: str
    pooling: str
    fold_accuracy: list[float]  # mean over seeds where there are several
    seed_accuracy: list[float]  # mean over folds, one a seed
    dimension: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.fold_accuracy))

    @property
    def std(self) -> float:
        """Over folds."""
        return float(np.std(self.fold_accuracy))


def compare(
    encoder: AudioEncoder, config: Config, dataset: ShardDataset, protocol: Protocol, random_seeds: int = 3
) -> list[Row]:
    """Probe an encoder, the same architecture at random initialisation (several seeds) and log-mel statistics.

    Args:
        config: the encoder's; its random initialisations are drawn from it with other seeds.
    """
    labels, folds = labels_and_folds(dataset)
    inits = [
        random_encoder(config.model, config.train.seed + 1000 + i, encoder.front_end, encoder.normalise.statistics)
        for i in range(random_seeds)
    ]
    kinds = {
        PRETRAINED: [encoder_features(encoder, dataset)],
        RANDOM: [encoder_features(init, dataset) for init in inits],
        MEL: [mel_statistics(dataset)],
    }
    rows = []
    for name, features in kinds.items():
        for pooling in POOLINGS if features else ():
            accuracy = np.array([probe(f[pooling], labels, folds, protocol).fold_accuracy for f in features])
            rows.append(
                Row(
                    name,
                    pooling,
                    accuracy.mean(axis=0).tolist(),
                    accuracy.mean(axis=1).tolist(),
                    features[0][pooling].shape[1],
                )
            )
    return rows


def markdown_table(rows: list[Row]) -> str:
    """The comparison, a line a kind of features and a column a pooling; mean and standard deviation over folds."""
    cells = {(row.features, row.pooling): f"{row.mean:.3f} ± {row.std:.3f}" for row in rows}
    lines = [
        f"| features | {' | '.join(f'{p} pooling' for p in POOLINGS)} |",
        "|---|" + "---|" * len(POOLINGS),
    ]
    for name in dict.fromkeys(row.features for row in rows):
        seeds = max(len(row.seed_accuracy) for row in rows if row.features == name)
        label = f"{name} ({seeds} seeds)" if seeds > 1 else name
        lines.append(f"| {label} | {' | '.join(cells[name, p] for p in POOLINGS)} |")
    return "\n".join(lines)
