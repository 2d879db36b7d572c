"""One training from its checkpoint or the start to its last step, scored at the end of every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ajepa.finetuning.classifier import Score, resume, snapshot
from ajepa.finetuning.clips import prepare
from ajepa.finetuning.predict import metric_name, outputs, score
from ajepa.finetuning.step import FinetuneState, train_step
from ajepa.shards.labels import Labels
from ajepa.shards.reader import ShardReader
from ajepa.training.async_metrics import resolve_metrics
from ajepa.training.checkpoint_writer import CheckpointWriter
from ajepa.training.inputs import on_device
from ajepa.training.run_folder import read_history
from ajepa.training.session import Due, Stopwatch, explained_failures, must_stop, report_again, save_and_report
from ajepa.training.worker import StopRequest, WorkerHooks


class Stopped(Exception):
    """The run was asked to stop; a checkpoint of the step it reached is written."""


@dataclass(frozen=True)
class TrainingPhase:
    """One training."""

    folder: str  # its checkpoints
    part: str  # what it is called in reports
    reports: str  # the folder of its history
    validation: np.ndarray  # ascending rows it is scored on after each epoch; none: not scored
    epochs: int  # it ends after so many of the schedule's


def best_of(curve: Sequence[Score]) -> Score:
    """The best point of a validation curve; of equal ones the last, where the learning rate has come further down."""
    return max(curve, key=lambda point: (point.score, point.epoch))


def train(
    phase: TrainingPhase, state: FinetuneState, reader: ShardReader, labels: Labels, worker: WorkerHooks
) -> list[Score]:
    """Train a state to the phase's end; returns its validation curve. A finished phase returns at once.

    Raises:
        UserError: checkpoints and none is intact, or the workers see different ones; a damaged shard; too little GPU
            memory.
        NonFiniteLoss: a batch that cannot be trained on.
        Stopped, Preempted: `worker.stop` asked for it; the checkpoint is written.
    """
    config = state.config
    steps = state.schedule.steps(phase.epochs)
    curve, report = resume(phase.folder, state)
    recorded = [known["step"] for known in read_history(phase.reports)] if worker.rank == 0 else []
    report_again(state, report, recorded, worker)
    writer = CheckpointWriter(
        phase.folder, config.keep_checkpoints, lambda: snapshot(state, curve, report), later_wins=True
    )
    stopwatch = Stopwatch()
    batches = reader.batches(state.step, steps)
    pin = worker.device.type == "cuda"
    ahead = (prepare(config, labels, batch, pin) for batch in batches)
    losses: list[torch.Tensor] = []
    if not curve and config.head_init == "probe" and len(phase.validation):  # the probe itself may be the best
        curve.append(Score(0, 0, evaluate(state, reader, labels, phase.validation, worker)))
        report = {"part": phase.part, "step": 0, "total_steps": steps, "epoch": 0, _named(labels): curve[0].score}
        if worker.rank == 0:
            writer.save(curve[0].score)
        worker.report(report)
    try:
        with explained_failures(state, reader, config.batch_size, config.micro_batch):
            for inputs in on_device(stopwatch.waiting(ahead), worker.device):
                result = train_step(state, inputs, stop=worker.stop())
                stopwatch.steps += 1
                losses.append(result.loss)
                due, epoch = due_after(state, steps)
                report = {}
                score: float | None = None
                if due.report:
                    resolve_metrics(state)
                    report = {
                        "part": phase.part,
                        "step": state.step,
                        "total_steps": steps,
                        "share": len(inputs.log_mel) / config.batch_size,
                        "averaged": ["loss"],
                        "loss": torch.stack(losses).mean().item(),
                        "grad_norm": result.grad_norm.item(),
                        "encoder_lr": result.encoder_lr,
                        "head_lr": result.head_lr,
                        **stopwatch.rates(config.batch_size),
                    }
                    losses = []
                if epoch is not None:
                    report["epoch"] = epoch
                    if len(phase.validation):
                        score = evaluate(state, reader, labels, phase.validation, worker)
                        curve.append(Score(epoch, state.step, score))
                        report[_named(labels)] = score
                save_and_report(state, due, report, score, writer, worker, stopwatch)
                if not due.last and must_stop(state, writer, steps):
                    raise Stopped
                state.stop_request = StopRequest.GO_ON
    finally:
        batches.close()
        writer.close()
    return curve


def due_after(state: FinetuneState, steps: int) -> tuple[Due, int | None]:
    """What is due at the step a state has reached, of `steps`; and the epoch that ends with it."""
    config, step = state.config, state.step
    last, epoch = step == steps, state.schedule.ended_epoch(step)
    save = last or epoch is not None or bool(config.checkpoint_every and step % config.checkpoint_every == 0)
    return Due(report=last or epoch is not None or step % config.log_every == 0, save=save, last=last), epoch


def _named(labels: Labels) -> str:
    return f"validation_{metric_name(labels)}"


def evaluate(state: FinetuneState, reader: ShardReader, labels: Labels, rows: np.ndarray, worker: WorkerHooks) -> float:
    """Accuracy or mAP of the state on rows, by all workers together."""
    logits = outputs(state.scored, reader, rows, worker.device, worker.rank, worker.world_size)
    return score(logits.numpy(), labels.targets(rows), labels.multi_label)
