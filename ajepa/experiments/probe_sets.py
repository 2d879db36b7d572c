"""The labelled sets that encoders are scored on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ajepa import storage
from ajepa.choices import Evaluation, Unlabelled
from ajepa.evaluation.probe import ProbeResult
from ajepa.evaluation.splits import Splits, make_splits
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.labels import Labels, read_labels

SPLIT_SEED = 0  # of folds that are drawn: the same clips are tested in all trials
LABELLED = "-labelled"  # behind the name of a set whose clips without a label are left out


@dataclass(frozen=True)
class ProbeSet:
    """A labelled dataset that encoders are probed on."""

    name: str
    dataset: ShardDataset
    labels: Labels
    splits: Splits
    clip_ids: np.ndarray  # [n] str
    left_out: bool = False  # whether its clips without a label are

    @classmethod
    def of(cls, dataset: ShardDataset, name: str, unlabelled: Unlabelled = "auto") -> "ProbeSet":
        """
        Args:
            unlabelled: what clips without a label are, as for `make_splits`.

        Raises:
            UserError: it has no labels, or splits that cannot be used.
        """
        labels = read_labels(dataset)
        splits = make_splits(dataset, labels, SPLIT_SEED, unlabelled=unlabelled)
        left_out = unlabelled == "drop" and not labels.table.any(axis=1).all()
        ids = np.array(dataset.read_columns(["clip_id"])["clip_id"].to_pylist(), str)
        return cls(name + LABELLED if left_out else name, dataset, labels, splits, ids, left_out)

    @property
    def hash(self) -> str:
        """By which results name it: that of the dataset's clips, or another one where some of them are left out."""
        whole = self.dataset.clips_hash
        return hashlib.blake2b(f"{whole}{LABELLED}".encode(), digest_size=16).hexdigest() if self.left_out else whole

    @property
    def unlabelled(self) -> Unlabelled:
        """What makes these splits. "negative" and "refuse" make those of "auto", or are refused when it is opened."""
        return "drop" if self.left_out else "auto"


def open_probes(paths: Sequence[str], data: ShardDataset, unlabelled: Unlabelled = "auto") -> list[ProbeSet]:
    """Probe sets of folders of shards, each under a name of its own: the folder's, with the clips' hash behind it
    where two folders have the same. The same clips in two places are one set.

    Args:
        unlabelled: what clips without a label are; those of a set from which some are left out are named as such.

    Raises:
        UserError: as `ProbeSet.of`; or another front end than that of the data trained on.
    """
    datasets: dict[str, tuple[str, ShardDataset]] = {}
    for path in paths:
        dataset = open_dataset(path)
        dataset.require_front_end(data.front_end)
        datasets.setdefault(dataset.clips_hash, (Path(storage.absolute(path)).name, dataset))
    names = [name for name, _ in datasets.values()]
    return [
        ProbeSet.of(dataset, name if names.count(name) == 1 else f"{name}-{key[:8]}", unlabelled)
        for key, (name, dataset) in datasets.items()
    ]


def describe_scores(probe_set: ProbeSet, protocol: Evaluation, pooling: str, found: ProbeResult) -> dict[str, Any]:
    """What a result says of an evaluation: its score, and of single labels which tested clips are right, as bits in
    hex, in the order of clip ids: rows may have another order elsewhere."""
    right = None
    if not found.multi_label:
        order = np.argsort(probe_set.clip_ids[found.clips], kind="stable")
        hits = found.scores[order].argmax(axis=1) == found.targets[order].argmax(axis=1)
        right = np.packbits(hits).tobytes().hex()
    return {
        "data": {"name": probe_set.name, "hash": probe_set.hash, "clips": len(found.clips)},
        "splits": probe_set.splits.what,
        "protocol": protocol,
        "pooling": pooling,
        "metric": found.metric,
        "score": found.mean,
        "validation": found.validation,
        "folds": found.fold_scores,
        "right": right,
    }
