"""What surrounds the steps of every training loop: what is due after a step, checkpoints, reports, stops, and errors
that name the clips."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ajepa.errors import Preempted
from ajepa.shards.reader import ShardReader
from ajepa.training.async_metrics import MetricsOwner, NonFiniteLoss, out_of_memory, resolve_metrics
from ajepa.training.checkpoint_writer import CheckpointWriter
from ajepa.training.worker import StopRequest, WorkerHooks

T = TypeVar("T")

MAX_NAMED = 16  # clips in the message of a loss that is not finite


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    report: bool
    save: bool
    last: bool


class Stopwatch:
    """Seconds since the last report, and how many of them were spent waiting for data, and for the checkpoint before to
    be written."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.held, self.steps = time.perf_counter(), 0.0, 0.0, 0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time it takes to get them counted."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.waited += time.perf_counter() - asked
            yield item

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, a checkpoint is waited for."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.held += time.perf_counter() - began

    def rates(self, batch_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        return {
            "seconds_per_step": seconds / self.steps,
            "clips_per_second": batch_size * self.steps / seconds,
            "data_wait": self.waited / seconds,
            "checkpoint_wait": self.held / seconds,
        }


def save_and_report(
    state: MetricsOwner,
    due: Due,
    report: dict[str, Any],
    score: float | None,
    writer: CheckpointWriter,
    worker: WorkerHooks,
    stopwatch: Stopwatch,
) -> None:
    """Write a checkpoint and report after a step, where they are due or a worker was asked to stop. After a report the
    stopwatch begins again, so that the wait for a checkpoint counts in the next one.

    Args:
        score: of the step, higher is better; it decides which checkpoint is kept as the best.
    """
    if due.report:
        stopwatch.restart()
    if due.save or state.stop_request:
        resolve_metrics(state)
        if worker.rank == 0:
            with stopwatch.holding():
                writer.close()
            writer.save(score)
    if due.report:
        if due.last:
            writer.close()  # a run that reports its last step has its last checkpoint
        worker.report(report)


def report_again(state: MetricsOwner, report: dict[str, Any], recorded: Iterable[int], worker: WorkerHooks) -> bool:
    """Report the step of the checkpoint that a run goes on from, where the run was killed before it was recorded.

    Args:
        report: what the checkpoint holds; empty if nothing was to be reported.
        recorded: steps of the reports so far; rank 0's count.

    Returns:
        Whether it was reported.
    """
    answer = [bool(report) and report["step"] not in set(recorded)]
    if state.world_size > 1:
        dist.broadcast_object_list(answer, src=0, device=state.device)
    if answer[0]:
        worker.report(report)
    return answer[0]


def must_stop(state: MetricsOwner, writer: CheckpointWriter, steps: int) -> bool:
    """Whether a run of `steps` steps ends here because a worker was asked to stop; its checkpoint is then written.

    Raises:
        Preempted: it is to be started again elsewhere.
    """
    if state.stop_request < StopRequest.RESTART:
        return False
    writer.close()
    if state.world_size > 1:
        dist.barrier()  # the others must not bring the group down while rank 0 writes
    if state.stop_request == StopRequest.STOP:
        return True
    raise Preempted(f"stopped at step {state.step} of {steps}: the machine is being taken away")


@contextlib.contextmanager
def explained_failures(state: MetricsOwner, reader: ShardReader, batch_size: int, micro_batch: int) -> Iterator[None]:
    """Inside, a loss that is not finite names its clips, and a GPU without memory the option that helps."""
    try:
        yield
    except NonFiniteLoss as error:
        raise name_clips(error, reader) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(state, batch_size, micro_batch) from error


def name_clips(error: NonFiniteLoss, reader: ShardReader) -> NonFiniteLoss:
    """The error with the ids of the clips it blames, where it blames any."""
    if not error.rows:
        return error
    names = reader.clip_ids(np.array(error.rows[:MAX_NAMED]))
    more = f" and {len(error.rows) - MAX_NAMED} more" if len(error.rows) > MAX_NAMED else ""
    return NonFiniteLoss(f"{error}: clips {', '.join(names)}{more}", error.rows)
