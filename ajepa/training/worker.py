"""What the training loop gets from its caller: its rank, its device, where to report, when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever asks a run to stop needs no model code
    import torch

    from ajepa.training.step import TrainState


class StopRequest(IntEnum):
    """What WorkerHooks.stop may ask for, from little to much; the largest of all workers counts."""

    GO_ON = 0
    SAVE = 1  # and go on
    RESTART = 2  # save, and start again elsewhere
    STOP = 3  # save, and end


@dataclass
class WorkerHooks:
    """What a training process knows of the others and of the world outside."""

    rank: int
    world_size: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]  # called by every rank equally often, with metrics of that rank
    stop: Callable[[], StopRequest] = lambda: StopRequest.GO_ON  # asked before every step
    score: Callable[[TrainState], dict[str, float]] = lambda _: {}  # labelled metrics (online probe), asked of rank 0
    history: list[dict[str, Any]] = field(default_factory=list)  # reports of the run so far, for rank 0's verdict
    resume_anyway: bool = False  # go on from a checkpoint whose stream of clips was another
