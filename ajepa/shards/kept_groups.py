"""Row groups that a rank keeps in memory although no clip of them is in use: an epoch of few comes back to them."""

import itertools
from collections.abc import Callable, Collection, Iterable

import numpy as np

from ajepa.shards.order import EpochOrder
from ajepa.shards.shuffle_window import ShuffleWindow, last_places


class KeptGroups:
    """Which row groups one rank comes back to.

    Args:
        window: of the reader.
        rank: of this reader among the window's.
        group_of: the row group of each of some rows.
        count: row groups of the dataset.
        room: row groups that fit into the cache, those in use too.
    """

    def __init__(
        self,
        window: ShuffleWindow,
        rank: int,
        group_of: Callable[[np.ndarray], np.ndarray],
        count: int,
        room: int,
    ) -> None:
        self._window, self._rank, self._group_of, self._count = window, rank, group_of, count
        spare = max(0, room - -(-window.size // window.world_size))
        self._spare = spare if window.comes_back(count) else 0
        self._epoch, self._last = -1, np.empty(0, np.int64)  # see `last_places`

    def needed_again(
        self, step: int, order: Callable[[int], EpochOrder], held: Iterable[int], used: Collection[int]
    ) -> Collection[int]:
        """Row groups that are held, not in use, and needed again from `step` on in its epoch; as many as there is room
        for.

        Args:
            order: of an epoch.
        """
        if not self._spare:
            return frozenset()
        window = self._window
        epoch = window.epochs(step)[0]
        if epoch != self._epoch:
            clips, size = order(epoch), min(window.size, window.num_clips)
            columns = self._rank * size // window.world_size, -(-(self._rank + 1) * size // window.world_size)
            self._epoch = epoch
            self._last = last_places(clips, self._group_of(clips.rows), *columns, self._count)
        place = step * window.batch_size - epoch * window.num_clips
        unused = (group for group in held if group not in used and self._last[group] >= place)
        return frozenset(itertools.islice(unused, self._spare))
