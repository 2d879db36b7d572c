"""What the training loop is told by whoever starts it: its place among the workers, whom to report to, when to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever asks a run to stop needs no model code
    import torch

    from ajepa.training.step import TrainState

# What WorkerContext.stop may ask for, from little to much; the largest of all workers counts.
GO_ON, SAVE, RESTART, STOP = range(4)


@dataclass
class WorkerContext:
    """What a training process knows of the others and of the world outside."""

    rank: int
    world_size: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]  # called by every rank equally often, with figures of that rank
    stop: Callable[[], int] = lambda: GO_ON  # asked before every step: SAVE and go on, save and RESTART, save and STOP
    score: Callable[[TrainState], dict[str, float]] = lambda _: {}  # labelled figures (online probe), asked of rank 0
    history: list[dict[str, Any]] = field(default_factory=list)  # reports of the run so far, for rank 0's verdict
    resume_anyway: bool = False  # go on from a checkpoint whose stream of clips was another
