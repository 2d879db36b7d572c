"""The training loop: from a checkpoint or the start to the last step. The caller decides where reports go."""

from typing import Any

import torch

from ajepa.config import Config, TrainConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader
from ajepa.training.async_metrics import resolve_metrics
from ajepa.training.checkpoint_writer import CheckpointWriter
from ajepa.training.inputs import on_device, prepare
from ajepa.training.monitor import Monitor
from ajepa.training.schedules import total_steps
from ajepa.training.session import Due, Stopwatch, explained_failures, must_stop, report_again, save_and_report
from ajepa.training.snapshot import resume, snapshot
from ajepa.training.step import StepResult, TrainState, build_state, train_step
from ajepa.training.worker import StopRequest, WorkerHooks


def train(config: Config, dataset: ShardDataset, output: str, worker: WorkerHooks) -> None:
    """Train from the newest intact checkpoint of `output`, or from the start, to the last step.

    Returns early, with a checkpoint written, when `worker.stop` says STOP.

    Raises:
        UserError: `output` has checkpoints and none is intact or the newest is beyond the last step, or the workers see
            different ones; a damaged shard; too little GPU memory.
        NonFiniteLoss: a batch that cannot be trained on.
        Collapsed: the verdict, with stop_on_collapse.
        Preempted: `worker.stop` asked for RESTART; the checkpoint is written.
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
    recorded = [report["step"] for report in worker.history]
    known = info.report if info is not None else {}
    if report_again(state, known, recorded, worker):
        worker.history.append(known)
    monitor = Monitor(state, reader, worker) if worker.rank == 0 else None
    report: dict[str, Any] = {}
    writer = CheckpointWriter(
        output, every.keep_checkpoints, lambda: snapshot(state, dataset, reader.state_dict(), report)
    )
    if state.step == 0 or (state.step == steps and not known):
        first = {"step": state.step}
        worker.report((monitor.measure(first) if monitor else first) | {"total_steps": steps})
    stopwatch = Stopwatch()
    batches = reader.batches(state.step, steps)
    pin = worker.device.type == "cuda"
    inputs_ahead = (prepare(config, batch, steps, pin) for batch in batches)
    losses: list[torch.Tensor] = []
    try:
        with explained_failures(state, reader, every.batch_size, every.micro_batch):
            for inputs in on_device(stopwatch.waiting(inputs_ahead), worker.device):
                due, measure = due_after(state.step + 1, steps, every)
                result = train_step(state, inputs, metrics=due.report, stop=worker.stop())
                stopwatch.steps += 1
                losses.append(result.loss)
                report = {}
                if due.report:
                    resolve_metrics(state)
                    share = len(inputs.log_mel) / every.batch_size
                    report = _step_metrics(state, result, losses) | {"total_steps": steps, "share": share}
                    report["averaged"] = ["loss", *result.metrics]
                    report |= stopwatch.rates(every.batch_size)
                    if monitor:
                        report |= monitor.utilisation(report["clips_per_second"])
                        report = monitor.measure(report) if measure else report
                save_and_report(state, due, report, report.get("online_linear"), writer, worker, stopwatch)
                if due.report:
                    if monitor and "verdict" in report:
                        monitor.stop_on_collapse()
                    losses = []
                if not due.last and must_stop(state, writer, steps):
                    return
                state.stop_request = StopRequest.GO_ON
    finally:
        batches.close()
        writer.close()


def due_after(step: int, steps: int, config: TrainConfig) -> tuple[Due, bool]:
    """What is due when `step` of `steps` are done, and whether the representations are measured."""
    last = step == steps
    measure, save = last or step % config.eval_every == 0, last or step % config.checkpoint_every == 0
    return Due(report=measure or save or step % config.log_every == 0, save=save, last=last), measure


def _step_metrics(state: TrainState, result: StepResult, losses: list[torch.Tensor]) -> dict[str, Any]:
    """What every report holds of a step; reads the device."""
    return {
        "step": state.step,
        "loss": torch.stack(losses).mean().item(),
        "grad_norm": result.grad_norm.item(),
        **{name: value.item() for name, value in result.metrics.items()},
        "lr": result.lr,
        "weight_decay": state.config.train.weight_decay,
        **({} if result.ema is None else {"ema": result.ema}),
        **({"loss_scale": state.scaler.get_scale()} if state.scaler.is_enabled() else {}),
    }
