"""The training loop: from a checkpoint or the start to the last step. Who reports to whom is the caller's affair."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ajepa.config import Config
from ajepa.errors import Preempted, UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.training.async_metrics import NonFiniteLoss, Watched, out_of_memory, settle
from ajepa.training.checkpoint_writer import CheckpointWriter
from ajepa.training.inputs import on_device, prepare
from ajepa.training.monitor import Monitor
from ajepa.training.schedules import total_steps
from ajepa.training.snapshot import resume, snapshot
from ajepa.training.step import StepResult, TrainState, build_state, train_step
from ajepa.training.worker import GO_ON, RESTART, STOP, WorkerContext

T = TypeVar("T")

MAX_NAMED = 16  # clips in the message of a loss that is not finite


class Stopwatch:
    """Seconds since the last report, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.began, self.waited, self.steps = time.perf_counter(), 0.0, 0

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

    def figures(self, batch_size: int) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        return {
            "seconds_per_step": seconds / self.steps,
            "clips_per_second": batch_size * self.steps / seconds,
            "data_wait": self.waited / seconds,
        }


def train(config: Config, dataset: ShardDataset, output: str, worker: WorkerContext) -> None:
    """Train from the newest intact checkpoint of `output`, or from the start, to the last step.

    Returns early, with a checkpoint written, when `worker.stop` says STOP.

    Raises:
        UserError: `output` has checkpoints and none is intact or the newest is beyond the last step, or the workers see
            different ones; a damaged shard; too little GPU memory.
        NonFiniteLoss: a batch that cannot be trained on.
        Collapsed: the verdict, with stop_on_collapse.
        Preempted: `worker.stop` said RESTART; the checkpoint is written.
    """
    every = config.train
    reader = ShardReader(
        dataset,
        crop_frames=config.model.crop_frames,
        batch_size=every.batch_size,
        seed=every.seed,
        rank=worker.rank,
        world_size=worker.world_size,
        holdout=every.holdout,
    )
    steps = total_steps(every, reader.num_clips)
    state = build_state(config, dataset.statistics, steps, worker.device, worker.world_size)
    info = resume(output, state)
    if state.step > steps:
        raise UserError(
            f"{output!r} is at step {state.step} already, beyond the {steps} steps asked for: give more steps, or "
            "another --output"
        )
    if info is not None and not worker.resume_anyway:
        reader.load_state_dict(info.reader)
    monitor = Monitor(state, reader, worker) if worker.rank == 0 else None
    report: dict[str, Any] = {}
    writer = CheckpointWriter(
        output, every.keep_checkpoints, lambda: snapshot(state, dataset, reader.state_dict(), report)
    )
    if info is not None and info.report and state.step == steps:
        worker.report(info.report)  # killed before it was heard
    elif state.step in (0, steps):
        first = {"step": state.step}
        worker.report((monitor.measure(first) if monitor else first) | {"total_steps": steps})
    pin = worker.device.type == "cuda"
    watch = Stopwatch()
    batches = reader.batches(state.step, steps)
    inputs_ahead = (prepare(config, batch, steps, pin) for batch in batches)
    losses: list[torch.Tensor] = []
    try:
        for inputs in on_device(watch.waiting(inputs_ahead), worker.device):
            following = state.step + 1
            last = following == steps
            measure, save = following % every.eval_every == 0, following % every.checkpoint_every == 0
            due = last or measure or save or following % every.log_every == 0
            result = train_step(state, inputs, figures=due, stop=worker.stop())
            watch.steps += 1
            losses.append(result.loss)
            report = {}
            if due:
                settle(state)
                share = len(inputs.log_mel) / every.batch_size
                report = _figures(state, result, losses) | {"total_steps": steps, "share": share}
                report |= watch.figures(every.batch_size)
                if monitor:
                    report |= monitor.utilisation(report["clips_per_second"])
                    report = monitor.measure(report) if last or measure else report
            if last or save or state.stop_request:
                settle(state)
                if worker.rank == 0:
                    writer.save(report.get("online_linear"))
            if due:
                if last:
                    writer.close()  # a run that reports its last step has its last checkpoint
                worker.report(report)
                if monitor and "verdict" in report:
                    monitor.stop_on_collapse()
                losses = []
                watch.restart()
            if not last and leaves(state, writer, steps):
                return
            state.stop_request = GO_ON
    except NonFiniteLoss as error:
        raise name_clips(error, reader) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(state, every.batch_size, every.micro_batch) from error
    finally:
        batches.close()
        writer.close()


def leaves(state: Watched, writer: CheckpointWriter, steps: int) -> bool:
    """Whether a run of `steps` steps ends here because a worker was asked to stop; its checkpoint is then written.

    Raises:
        Preempted: it is to be started again elsewhere.
    """
    if state.stop_request < RESTART:
        return False
    writer.close()
    if state.world_size > 1:
        dist.barrier()  # the others must not bring the group down while rank 0 writes
    if state.stop_request == STOP:
        return True
    raise Preempted(f"stopped at step {state.step} of {steps}: the machine is being taken away")


def name_clips(error: NonFiniteLoss, reader: ShardReader) -> NonFiniteLoss:
    """The error with the ids of the clips it blames, where it blames any."""
    if not error.rows:
        return error
    names = reader.clip_ids(np.array(error.rows[:MAX_NAMED]))
    more = f" and {len(error.rows) - MAX_NAMED} more" if len(error.rows) > MAX_NAMED else ""
    return NonFiniteLoss(f"{error}: clips {', '.join(names)}{more}", error.rows)


def _figures(state: TrainState, result: StepResult, losses: list[torch.Tensor]) -> dict[str, Any]:
    """What every report holds of a step; reads the device."""
    assert result.prediction_std is not None and result.target_std is not None
    return {
        "step": state.step,
        "loss": torch.stack(losses).mean().item(),
        "grad_norm": result.grad_norm.item(),
        "prediction_std": result.prediction_std.item(),
        "target_std": result.target_std.item(),
        "lr": result.lr,
        "weight_decay": state.config.train.weight_decay,
        "ema": result.ema,
        **({"loss_scale": state.scaler.get_scale()} if state.scaler.is_enabled() else {}),
    }
