"""The labels of a dataset's clips."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc

from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset


@dataclass(frozen=True)
class Labels:
    """Labels of clips in storage order, as one long list. A clip may have none, one or several."""

    names: tuple[str, ...]  # [C]
    values: np.ndarray  # int64, label ids
    starts: np.ndarray  # [n + 1] where each clip's begin

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def multi_label(self) -> bool:
        """Whether clips have several: then the loss is binary cross-entropy, else cross-entropy."""
        return bool((np.diff(self.starts) > 1).any())

    @cached_property
    def table(self) -> np.ndarray:
        """[n, C] bool, of all clips."""
        return self.targets(np.arange(len(self))) > 0

    def _entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The labels of rows [b] one after the other, and how many each row has."""
        counts = np.diff(self.starts)[rows]
        before = np.cumsum(counts) - counts
        return self.values[np.repeat(self.starts[rows] - before, counts) + np.arange(counts.sum())], counts

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """[b, C] float32, 1 for each label of the rows."""
        values, counts = self._entries(rows)
        out = np.zeros((len(rows), self.num_classes), np.float32)
        out[np.repeat(np.arange(len(rows)), counts), values] = 1
        return out

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Inverse label frequency of rows [b]: the sum over a clip's labels of 1 / clips with that label. No label
        counts as one."""
        targets = self.targets(rows)
        bare = ~targets.any(axis=1)
        return targets @ (1 / np.maximum(targets.sum(axis=0), 1)) + bare / max(1, int(bare.sum()))

    def only(self, rows: np.ndarray) -> "Labels":
        """The labels of these clips alone."""
        values, counts = self._entries(rows)
        return Labels(self.names, values, np.concatenate([[0], np.cumsum(counts)]))


def read_labels(dataset: ShardDataset) -> Labels:
    """The labels of a dataset; some clips may have none.

    Raises:
        UserError: no clip has a label, all have the same, or ids without a name.
    """
    column = dataset.read_columns(["labels"])["labels"]
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if not counts.any():
        raise UserError(
            f"no clip in {dataset.path!r} has a label: preprocess with --labels-from-folders, or a manifest with labels"
        )
    values = pc.list_flatten(column).to_numpy().astype(np.int64)
    names = dataset.label_names
    if values.max() >= len(names) or values.min() < 0:
        raise UserError(
            f"{dataset.path!r} names {len(names)} labels and has ids up to {values.max()}: preprocess again"
        )
    if values.min() == values.max():
        raise UserError(f"all clips in {dataset.path!r} have the same label: nothing to tell apart")
    return Labels(names, values, np.concatenate([[0], np.cumsum(counts)]))
