"""The training loop: from a checkpoint or the start to the last step. Who reports to whom is the caller's affair."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ajepa.config import Config
from ajepa.errors import UserError
from ajepa.model.schedules import total_steps
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.training.checkpoint import find_checkpoint, restore
from ajepa.training.diagnostics import representation_health
from ajepa.training.inputs import on_device, prepare
from ajepa.training.step import NonFiniteLoss, TrainState, build_state, settle, train_step
from ajepa.training.writer import CheckpointWriter

T = TypeVar("T")

FIXED_CLIPS = 256  # of the fixed set that health is measured on
FIXED_STEP = 1 << 40  # its place in the sample stream, never reached by training

# What WorkerContext.stop may ask for, from little to much; the largest of all workers counts.
GO_ON, SAVE, RESTART, STOP = range(4)


class Preempted(Exception):
    """This worker's machine is being taken away; a checkpoint of the step it reached is written."""


@dataclass
class WorkerContext:
    """What a training process knows of the others and of the world outside."""

    rank: int
    world_size: int
    device: torch.device
    report: Callable[[dict[str, Any]], None]  # called by every rank equally often, with figures of that rank
    stop: Callable[[], int] = lambda: GO_ON  # asked before every step: SAVE and go on, save and RESTART, save and STOP
    score: Callable[[TrainState], dict[str, float]] | None = None  # labelled figures (online probe), asked of rank 0


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
        UserError: `output` has checkpoints and none is intact, or the workers see different ones; a damaged shard.
        NonFiniteLoss: a batch that cannot be trained on.
        Preempted: `worker.stop` said RESTART; the checkpoint is written.
    """
    every = config.train
    state = build_state(
        config, dataset.statistics, total_steps(every, dataset.num_clips), worker.device, worker.world_size
    )
    checkpoint = find_checkpoint(output)
    if checkpoint is not None:
        restore(checkpoint, state)
    require_agreement(state)
    reader = ShardReader(
        dataset,
        crop_frames=config.model.crop_frames,
        batch_size=every.batch_size,
        seed=every.seed,
        rank=worker.rank,
        world_size=worker.world_size,
    )
    fixed = fixed_crops(dataset, config, state) if worker.rank == 0 else None
    writer = CheckpointWriter(output, dataset, every.keep_checkpoints)
    if state.step == 0:
        worker.report(_measure(state, worker, fixed) | {"step": 0, "total_steps": state.total_steps})
    pin = worker.device.type == "cuda"
    watch = Stopwatch()
    batches = (
        prepare(config, batch, state.total_steps, pin) for batch in reader.batches(state.step, state.total_steps)
    )
    losses: list[torch.Tensor] = []
    try:
        for inputs in on_device(watch.waiting(batches), worker.device):
            following = state.step + 1
            last = following == state.total_steps
            measure, save = following % every.eval_every == 0, following % every.checkpoint_every == 0
            due = last or measure or save or following % every.log_every == 0
            result = train_step(state, inputs, figures=due, stop=worker.stop())
            watch.steps += 1
            losses.append(result.loss)
            figures: dict[str, Any] = {}
            if due:
                settle(state)
                figures = {
                    "step": state.step,
                    "total_steps": state.total_steps,
                    "loss": torch.stack(losses).mean().item(),
                    "share": len(inputs.log_mel) / every.batch_size,
                    "grad_norm": result.grad_norm.item(),
                    "prediction_std": _item(result.prediction_std),
                    "target_std": _item(result.target_std),
                    "lr": result.lr,
                    "weight_decay": every.weight_decay,
                    "ema": result.ema,
                    **({"loss_scale": state.scaler.get_scale()} if state.scaler.is_enabled() else {}),
                    **watch.figures(every.batch_size),
                }
                if last or measure:
                    figures |= _measure(state, worker, fixed)
            if last or save or state.stop_request:
                settle(state)
                if worker.rank == 0:
                    writer.save(state, figures.get("online_linear"))
            if due:
                if last:
                    writer.close()  # a run that reports its last step has its last checkpoint
                worker.report(figures)
                losses = []
                watch.restart()
            if state.stop_request >= RESTART and not last:
                writer.close()
                if worker.world_size > 1:
                    dist.barrier()  # the others must not bring the group down while rank 0 writes
                if state.stop_request == STOP:
                    return
                raise Preempted(f"stopped at step {state.step} of {state.total_steps}: the machine is being taken away")
            state.stop_request = GO_ON
    except NonFiniteLoss as error:
        if not error.rows:
            raise
        raise NonFiniteLoss(f"{error}; clips {', '.join(reader.clip_ids(error.rows))}", error.rows) from error
    finally:
        writer.close()


def require_agreement(state: TrainState) -> None:
    """Check that all workers start at the same step.

    Raises:
        UserError: they found different checkpoints.
    """
    if state.world_size == 1:
        return
    steps = torch.tensor([state.step, -state.step], device=state.device)
    dist.all_reduce(steps, dist.ReduceOp.MAX)
    highest, lowest = int(steps[0]), -int(steps[1])
    if highest != lowest:
        raise UserError(
            f"the workers found checkpoints of different steps ({lowest} to {highest}): --output must be a folder that "
            "all machines share, or a URI"
        )


def fixed_crops(dataset: ShardDataset, config: Config, state: TrainState) -> torch.Tensor:
    """A fixed set of crops, [<= 256, n_mels, crop_frames] normalised, on the device."""
    count = min(FIXED_CLIPS, dataset.num_clips)
    reader = ShardReader(dataset, crop_frames=config.model.crop_frames, batch_size=count, seed=config.train.seed)
    return state.normalise(torch.from_numpy(reader.batch(FIXED_STEP // count).log_mel).to(state.device))


def _measure(state: TrainState, worker: WorkerContext, fixed: torch.Tensor | None) -> dict[str, float]:
    """What rank 0 measures on fixed clips; nothing on the other ranks."""
    if fixed is None:
        return {}
    scores = worker.score(state) if worker.score else {}
    return representation_health(state.core.target_encoder, fixed) | scores


def _item(value: torch.Tensor | None) -> float:
    assert value is not None
    return value.item()
