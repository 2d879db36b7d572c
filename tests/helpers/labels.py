"""Labels made from what tests have."""

from collections.abc import Sequence

import numpy as np

from ajepa.shards.labels import Labels


def labels_of(names: Sequence[str], lists: Sequence[Sequence[int]]) -> Labels:
    """From the label ids of each clip."""
    starts = np.cumsum([0, *map(len, lists)])
    return Labels(tuple(names), np.array([label for labels in lists for label in labels], np.int64), starts)


def labels_from_table(names: Sequence[str], table: np.ndarray) -> Labels:
    """From [n, C] bool."""
    return labels_of(names, [np.flatnonzero(row).tolist() for row in table])
