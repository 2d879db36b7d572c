"""One training from its checkpoint or the start to its last step, scored at the end of every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ajepa.finetuning.classifier import Score, resume, snapshot
from ajepa.finetuning.clips import Labels, prepare
from ajepa.finetuning.predict import metric_name, outputs, score
from ajepa.finetuning.step import FinetuneState, train_step
from ajepa.shards.reader import ShardReader
from ajepa.training.async_metrics import NonFiniteLoss, out_of_memory, settle
from ajepa.training.checkpoint_writer import CheckpointWriter
from ajepa.training.inputs import on_device
from ajepa.training.loop import Stopwatch, leaves, name_clips
from ajepa.training.worker import GO_ON, WorkerContext


class Stopped(Exception):
    """The run was asked to stop; a checkpoint of the step it reached is written."""


@dataclass(frozen=True)
class Stage:
    """One training."""

    folder: str  # its checkpoints
    part: str  # what it is called in reports
    validation: np.ndarray  # ascending rows it is scored on after each epoch; none: not scored
    epochs: int  # it ends after so many of the schedule's


def best_of(curve: Sequence[Score]) -> Score:
    """The best point of a validation curve; of equal ones the last, where the learning rate has come further down."""
    return max(curve, key=lambda point: (point.score, point.epoch))


def train(
    stage: Stage, state: FinetuneState, reader: ShardReader, labels: Labels, worker: WorkerContext
) -> list[Score]:
    """Train a state to the stage's end; returns its validation curve. A stage that is over costs nothing.

    Raises:
        UserError: checkpoints and none is intact, or the workers see different ones; a damaged shard; too little GPU
            memory.
        NonFiniteLoss: a batch that cannot be trained on.
        Stopped, Preempted: `worker.stop` said so; the checkpoint is written.
    """
    config, schedule = state.config, state.schedule
    steps = schedule.steps(stage.epochs)
    curve = resume(stage.folder, state)
    writer = CheckpointWriter(stage.folder, config.keep_checkpoints, lambda: snapshot(state, curve), later_wins=True)
    watch = Stopwatch()
    batches = reader.batches(state.step, steps)
    pin = worker.device.type == "cuda"
    ahead = (prepare(config, labels, batch, pin) for batch in batches)
    losses: list[torch.Tensor] = []
    if not curve and config.head_init == "probe" and len(stage.validation):  # the probe itself may be the best
        curve.append(Score(0, 0, evaluate(state, reader, labels, stage.validation, worker)))
        if worker.rank == 0:
            writer.save(curve[0].score)
        worker.report({"part": stage.part, "step": 0, "total_steps": steps, "epoch": 0, _named(labels): curve[0].score})
    try:
        for inputs in on_device(watch.waiting(ahead), worker.device):
            result = train_step(state, inputs, stop=worker.stop())
            watch.steps += 1
            losses.append(result.loss)
            last = state.step == steps
            epoch = schedule.ended_epoch(state.step)
            save = last or epoch is not None or (config.checkpoint_every and state.step % config.checkpoint_every == 0)
            reached: float | None = None
            if last or epoch is not None or state.step % config.log_every == 0:
                settle(state)
                report: dict[str, Any] = {
                    "part": stage.part,
                    "step": state.step,
                    "total_steps": steps,
                    "share": len(inputs.log_mel) / config.batch_size,
                    "loss": torch.stack(losses).mean().item(),
                    "grad_norm": result.grad_norm.item(),
                    "encoder_lr": result.encoder_lr,
                    "head_lr": result.head_lr,
                    **watch.figures(config.batch_size),
                }
                if epoch is not None and len(stage.validation):
                    reached = evaluate(state, reader, labels, stage.validation, worker)
                    curve.append(Score(epoch, state.step, reached))
                    report[_named(labels)] = reached
                if epoch is not None:
                    report["epoch"] = epoch
                losses = []
            else:
                report = {}
            if save or state.stop_request:
                settle(state)
                if worker.rank == 0:
                    writer.save(reached)
            if report:
                worker.report(report)
                watch.restart()
            if not last and leaves(state, writer, steps):
                raise Stopped
            state.stop_request = GO_ON
    except NonFiniteLoss as error:
        raise name_clips(error, reader) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(state, config.batch_size, config.micro_batch) from error
    finally:
        batches.close()
        writer.close()
    return curve


def _named(labels: Labels) -> str:
    return f"validation_{metric_name(labels)}"


def evaluate(
    state: FinetuneState, reader: ShardReader, labels: Labels, rows: np.ndarray, worker: WorkerContext
) -> float:
    """Accuracy or mAP of the state on rows, by all workers together."""
    logits = outputs(state.scored, reader, rows, worker.device, worker.rank, worker.world_size)
    return score(logits.numpy(), labels.targets(rows), labels.multi_label)
