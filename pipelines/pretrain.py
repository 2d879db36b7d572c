"""Pretrain an A-JEPA encoder on log-mel shards with Ray Train. Interrupted, the same command goes on."""

import dataclasses
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import ray.train
import torch
import tyro
from ray.train import (
    Checkpoint,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution import context as report_internals

from ajepa import storage
from ajepa.config import PRESETS, Config, differences
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.training.checkpoint import CheckpointInfo, find_checkpoint, latest_checkpoint, read_info
from ajepa.training.loop import WorkerContext, train
from pipelines import tracking
from pipelines.common import cluster_cpus, parse, run_command, start_ray, warn_relative_output
from pipelines.history import append_history, read_history

RANK_FIGURES = ("loss", "prediction_std", "target_std")
RUN_JSON = "run.json"  # what the run is; "finished" once its last checkpoint is written


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Pretrain an encoder."""

    data: str
    """A finished shard folder (from preprocess.py); a local path or a URI."""
    output: str
    """The run folder: checkpoints and history. The same command with the same folder resumes."""
    preset: str = "nano"
    """nano, tiny, small, base or large; the options below start from it."""
    num_workers: int = 1
    """Data-parallel workers (one GPU each where there are GPUs); 0 trains inside this process, without Ray."""
    threads: int | None = None
    """CPU threads of a worker; by default the machine's CPUs shared out among its workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes GPUs when the cluster has any."""
    max_failures: int = 3
    """Worker failures survived by restarting from the last checkpoint."""
    overwrite: bool = False
    """Delete a run found at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
    config: Annotated[Config, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: PRESETS["nano"])


def parse_args(argv: Sequence[str]) -> PretrainArgs:
    """Two passes: --preset chooses the defaults that --help shows and the other options change."""
    names = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--preset"]
    names += [a.partition("=")[2] for a in argv if a.startswith("--preset=")]
    preset = names[-1] if names else "nano"
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    default = PretrainArgs(data=tyro.MISSING, output=tyro.MISSING, preset=preset, config=PRESETS[preset])
    return parse(PretrainArgs, __doc__ or "", argv, default)


class Reporter(UserCallback):
    """Controller side: every report goes to MLflow, the history file and the terminal, once."""

    def __init__(self, tracker: tracking.Tracker, output: str, quiet: bool = False) -> None:
        self.tracker, self.output, self.quiet = tracker, output, quiet
        self.pending: list[dict[str, Any]] = []  # not yet in the history file

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        # Rank 0 measures what is measured once; what each rank measured on its own clips is averaged.
        shared = {k: sum(m[k] for m in metrics) / len(metrics) for k in RANK_FIGURES if k in metrics[0]}
        report = metrics[0] | shared
        step, total = report["step"], report["total_steps"]
        figures = {k: v for k, v in report.items() if k not in ("step", "total_steps")}
        self.tracker.log_metrics(step, figures)
        self.pending.append(report)
        if not storage.is_uri(self.output) or "effective_rank" in report:
            append_history(self.output, self.pending)
            self.pending = []
        if not self.quiet and step:
            rank = f"  rank {report['effective_rank']:.1f}" if "effective_rank" in report else ""
            left = (total - step) * report["seconds_per_step"]
            print(
                f"step {step}/{total}  loss {report['loss']:.4f}{rank}  {report['clips_per_second']:.0f} clips/s  "
                f"{left / 60:.0f} min left",
                flush=True,
            )


def train_worker(settings: dict[str, Any]) -> None:
    """Entry of one Ray Train worker."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(choose_threads(settings["threads"], context.get_local_world_size()))
    # Ray names this logger by its file, so LoggingConfig misses it; it would print every report of every rank.
    logging.getLogger(report_internals.__file__).setLevel(logging.WARNING)
    worker = WorkerContext(rank, context.get_world_size(), ray.train.torch.get_device(), ray.train.report)
    train(settings["config"], open_dataset(settings["data"]), settings["output"], worker)


def prepare_output(args: PretrainArgs, dataset: ShardDataset) -> dict[str, Any] | None:
    """Check what the output holds. None: start afresh; else run.json of the run to resume or already finished.

    Raises:
        UserError: something else is there, or a run of another config or dataset.
    """
    names = [n for n, _ in storage.list_files(args.output)] if storage.kind(args.output) == "folder" else []
    if storage.kind(args.output) == "file" or (names and RUN_JSON not in names):
        raise UserError(f"--output {args.output!r} exists and is no run folder: choose another")
    if names and args.overwrite:
        storage.delete(args.output)
        return None
    if not names:
        return None
    run = json.loads(storage.read_text(storage.join(args.output, RUN_JSON)))
    changed = differences(run["config"], json.loads(args.config.to_json()))
    if run["dataset_hash"] != dataset.content_hash:
        changed.append(f"dataset: {run['dataset_hash']} -> {dataset.content_hash}")
    if changed:
        raise UserError(
            f"--output {args.output!r} holds a run with other settings ({'; '.join(changed[:4])}): resume it with its "
            "own settings, choose another --output, or --overwrite to replace it"
        )
    return run


def choose_threads(threads: int | None, workers_here: int) -> int:
    """Threads of a worker: as told, or this machine's CPUs shared out. Too many slow a step down several times over."""
    return threads or max(1, len(os.sched_getaffinity(0)) // max(1, workers_here))


def fit(args: PretrainArgs, tracker: tracking.Tracker, callbacks: Sequence[UserCallback]) -> None:
    """Train with `num_workers` Ray Train workers, or inside this process with 0."""
    output = storage.absolute(args.output)
    settings = {"config": args.config, "data": args.data, "output": output, "threads": args.threads}
    if args.num_workers == 0:
        torch.set_num_threads(choose_threads(args.threads, 1))

        def report(metrics: dict[str, Any]) -> None:
            for callback in callbacks:
                callback.after_report(None, [metrics], None)

        device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
        train(args.config, open_dataset(args.data), output, WorkerContext(0, 1, device, report))
        return
    start_ray()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = args.device == "cuda" or (args.device == "auto" and gpus > 0)
    resource, have = ("GPU", gpus) if use_gpu else ("CPU", cluster_cpus())
    if args.num_workers > have:
        raise UserError(f"--num-workers {args.num_workers} needs as many {resource}s; the cluster has {have}")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=args.num_workers, use_gpu=use_gpu),
        # Checkpoints are the run folder's own, written by rank 0 and found again by every attempt. Ray only hears of
        # figures; its state gets a fresh name each time, for a name that finished once would silently do nothing.
        run_config=RunConfig(
            storage_path=storage.join(output, "ray"),
            name=uuid.uuid4().hex[:12],
            failure_config=FailureConfig(max_failures=args.max_failures),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", None) or failure
            if isinstance(cause, UserError):  # said by our own code: the message is enough
                raise UserError(str(cause)) from error
        raise
    except SystemExit as error:  # how Ray Train's own handler leaves after Ctrl-C
        raise KeyboardInterrupt from error


def main(
    args: PretrainArgs,
    *,
    parent: str | None = None,
    name: str | None = None,
    callbacks: Sequence[UserCallback] = (),
    quiet: bool = False,
) -> CheckpointInfo:
    """Run the training the arguments describe; returns its last checkpoint.

    Args:
        parent: MLflow run this one is nested under.
        name: of the MLflow run; by default "pretrain" and the preset.
        callbacks: more Ray Train callbacks, beside the one that records.
    """
    warn_relative_output(args.output)
    args = dataclasses.replace(args, data=storage.absolute(args.data), output=storage.absolute(args.output))
    dataset = open_dataset(args.data)
    if dataset.front_end.n_mels != args.config.model.n_mels:
        raise UserError(
            f"the shards have {dataset.front_end.n_mels} mel bins, the model takes {args.config.model.n_mels}"
        )
    if args.num_workers > 1 and args.config.train.batch_size % args.num_workers:
        raise UserError(f"--batch-size {args.config.train.batch_size} does not divide over {args.num_workers} workers")
    run = prepare_output(args, dataset)
    if run and run["finished"]:
        info = read_info(latest_checkpoint(args.output))
        print(f"nothing to do: {args.output} finished its {info.step} steps (--overwrite starts again)")
        return info
    if run:
        tracker = tracking.Tracker(run["mlflow_uri"], run["mlflow_run"])
        checkpoint = find_checkpoint(args.output)
        print(f"resuming at step {read_info(checkpoint).step if checkpoint else 0}")
    else:
        uri = tracking.tracking_uri(args.mlflow_uri, args.output)
        params = tracking.flatten(args.config.to_dict()) | {
            "preset": args.preset, "data": args.data, "dataset_hash": dataset.content_hash,
            "num_workers": args.num_workers, "output": args.output,
        }  # fmt: skip
        name = name or f"pretrain {args.preset}"
        tracker = tracking.start_run(uri, name, params=params, tags={"ajepa.job": "pretrain"}, parent=parent)
        run = {
            "config": args.config.to_dict(), "dataset_hash": dataset.content_hash, "data": args.data, "finished": False,
            "preset": args.preset, "mlflow_uri": uri, "mlflow_run": tracker.run_id,
        }  # fmt: skip
        storage.make_folder(args.output)
        storage.write_text(storage.join(args.output, RUN_JSON), json.dumps(run, indent=1))
    start = time.perf_counter()
    with tracker.recording():
        fit(args, tracker, [Reporter(tracker, args.output, quiet), *callbacks])
        info = read_info(latest_checkpoint(args.output))
        if info.step < info.total_steps:  # Ray Train ends quietly after Ctrl-C
            raise KeyboardInterrupt
        storage.write_text(storage.join(args.output, RUN_JSON), json.dumps(run | {"finished": True}, indent=1))
        tracker.log_text(args.config.to_json(), "config.json")
    last = read_history(args.output)[-1]
    print(
        f"{info.step} steps in {(time.perf_counter() - start) / 60:.1f} min, loss {last['loss']:.4f}, effective rank "
        f"{last['effective_rank']:.1f} of {args.config.model.width}; encoder at {args.output}"
    )
    return info


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
