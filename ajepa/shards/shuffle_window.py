"""When row groups are read ahead and dropped: the arithmetic of the window of row groups that an epoch's order uses."""

from dataclasses import dataclass

import numpy as np

from ajepa.shards.order import EpochOrder
from ajepa.shards.schema import ROW_GROUP

STEPS_AHEAD = 4  # steps whose row groups are read ahead of the batches that are ready; fewer of large batches
GROUPS_AHEAD = 16  # row groups that a rank asks a store for ahead: each takes a connection a third of a second or more
SMALL = 40  # windows; in an epoch of more, the row groups that are read twice are less than 5% of all


@dataclass(frozen=True)
class ShuffleWindow:
    """About `size` row groups, over all ranks, are in use at any position of an epoch (see `epoch_order`).

    Attributes:
        batch_size: clips of a step over all ranks.
        num_clips: of an epoch.
        world_size: ranks.
        late: whether row groups come from a store, many at a time but each of them late.
    """

    size: int
    batch_size: int
    num_clips: int
    world_size: int = 1
    late: bool = False

    def epochs(self, step: int) -> tuple[int, int]:
        """The first and the last epoch whose clips a step takes."""
        return step * self.batch_size // self.num_clips, ((step + 1) * self.batch_size - 1) // self.num_clips

    def next_epoch(self, step: int) -> tuple[int, int]:
        """(the epoch after that in which a step begins, the step in which it begins)."""
        epoch = step * self.batch_size // self.num_clips + 1
        return epoch, epoch * self.num_clips // self.batch_size

    @property
    def steps(self) -> int:
        """Steps that one window of row groups lasts."""
        return self.size * ROW_GROUP // self.batch_size

    @property
    def steps_ahead(self) -> int:
        """Steps whose row groups are asked for before their turn: at most half of a window. Of a store as many as take
        GROUPS_AHEAD row groups of each rank, so that a large batch on a fast device does not wait for them."""
        near = max(1, min(STEPS_AHEAD, self.steps // 2))
        return max(near, -(-GROUPS_AHEAD * ROW_GROUP * self.world_size // self.batch_size)) if self.late else near

    @property
    def opening_steps(self) -> int:
        """Steps in which an epoch comes to a first row of every column: one round."""
        return -(-self.size // self.batch_size)

    def opened(self, step: int, begin: int, groups: int) -> int:
        """How many of the next epoch's first `groups` row groups are asked for at a step, when it begins at step
        `begin`. It needs a whole window of others at once, so they are asked for little by little over a window."""
        left = begin - step
        return groups * (self.steps - left) // self.steps if left < self.steps else 0

    @property
    def calls_kept(self) -> int:
        """Steps for which a row group is kept after it was last used: two rounds of the window, the longest gap
        between two clips of one that is in use."""
        return -(-2 * self.size // self.batch_size)

    def comes_back(self, groups: int) -> bool:
        """Whether an epoch of so many row groups is short enough to keep those that it comes back to.

        A column begins and ends within a row group, and rotated also within another one: of each window, up to two row
        groups a column are read twice in an epoch."""
        return groups < SMALL * self.size


def last_places(order: EpochOrder, groups: np.ndarray, first: int, last: int, count: int) -> np.ndarray:
    """The last position of an epoch at which each row group is used by the columns first..last-1, -1 where none.

    Args:
        groups: [n] int64, the row group of each position's row.
        count: row groups of the dataset.

    Returns:
        int64 [count].
    """
    places = np.flatnonzero((first <= order.columns) & (order.columns < last))
    found = np.full(count, -1)
    np.maximum.at(found, groups[places], places)
    return found
