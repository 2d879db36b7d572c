"""Pretrain an encoder on log-mel shards with Ray Train. Interrupted, the same command goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.checkpoints import RUN_JSON, CheckpointInfo, latest_checkpoint, newest_step, read_info, read_weights
from ajepa.config_json import differences, upgraded
from ajepa.errors import UserError
from ajepa.objectives.registry import build_objective
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.training.run_folder import read_history
from pipelines.cli.arguments import parse_workers
from pipelines.cli.lock import claimed
from pipelines.cli.output import OutputType, open_output, refuse_changes, warn_relative_output
from pipelines.rayjobs.pretrain_worker import pretrain
from pipelines.rayjobs.train_job import Workers, fit, require_resources
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import resumed_uri
from pipelines.tracking.outcomes import training_outcome
from pipelines.tracking.reporter import Reporter
from pipelines.tracking.source import RunSource

if TYPE_CHECKING:  # the commands import this module
    from pipelines.pretrain import PretrainArgs

RUN = OutputType("run folder", (RUN_JSON,))


def prepare_output(args: PretrainArgs, dataset: ShardDataset) -> dict[str, Any] | None:
    """Check what the output holds. None: start afresh; else run.json of the run to resume or already finished.

    Raises:
        UserError: something else is there, a run of another config or dataset, or a damaged run.json.
    """
    found = open_output(args.output, RUN, args.overwrite)
    if found is None:
        return None
    run = found.content
    found.require(config=dict, dataset_hash=str, finished=bool, mlflow_run=str, mlflow_uri=(str, NoneType))
    with found.refusing_damage():
        old = upgraded(run["config"]) | {"dataset": run["dataset_hash"]}
    new = json.loads(args.config.to_json()) | {"dataset": dataset.content_hash}
    if not args.resume_anyway:
        advice = (
            "resume it with its own settings, choose another --output, --resume-anyway to go on with the new ones, or "
            "--overwrite to replace it"
        )
        refuse_changes(args.output, "a run with other settings", old, new, advice)
    elif changed := differences(old, new):
        print(f"resuming although these differ: {'; '.join(changed)}", file=sys.stderr)
        run |= {"config": args.config.to_dict(), "dataset_hash": dataset.content_hash, "finished": False}
        storage.write_text(storage.join(args.output, RUN_JSON), json.dumps(run, indent=1))
    return run


def check(args: PretrainArgs, dataset: ShardDataset) -> None:
    """Mistakes that can be found before anything is written."""
    batch, workers = args.config.train.batch_size, parse_workers(args.num_workers)
    if dataset.front_end.n_mels != args.config.model.n_mels:
        raise UserError(
            f"the shards have {dataset.front_end.n_mels} mel bins, the model takes {args.config.model.n_mels}"
        )
    most = workers if isinstance(workers, int) else workers[1]
    if batch < most:
        raise UserError(f"--batch-size {batch} gives {most} workers nothing to do: use at most {batch}")
    if args.config.train.precision == "fp16" and args.device == "cpu":
        raise UserError("--precision fp16 is for GPUs: use bf16 or fp32 on a CPU")


def start_or_resume(args: PretrainArgs, dataset: ShardDataset, run: dict[str, Any] | None, **mlflow: Any) -> Any:
    """(run.json, tracker) of the run at the output, made where there is none."""
    params = mlflow_run.flatten(args.config.to_dict()) | {
        "preset": args.preset, "data": args.data, "dataset_hash": dataset.content_hash,
        "num_workers": args.num_workers, "output": args.output,
    }  # fmt: skip
    about: dict[str, Any] = {
        "output": args.output,
        "params": params,
        "histories": True,
    } | mlflow
    uri = resumed_uri(args.mlflow_uri, args.output, run)
    if run:
        print(f"resuming at step {max(0, newest_step(args.output))}")
        tracker = mlflow_run.start_run(uri, resumed=run["mlflow_run"], **about)
    else:
        tracker = mlflow_run.start_run(uri, **about)
        run = {
            "config": args.config.to_dict(), "dataset_hash": dataset.content_hash, "data": args.data,
            "clips": dataset.num_clips, "hours": dataset.hours, "finished": False, "preset": args.preset,
        }  # fmt: skip
    return run | {"mlflow_uri": mlflow_run.shown(uri), "mlflow_run": tracker.run_id}, tracker


def main(
    args: PretrainArgs,
    *,
    parent: str | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    source: RunSource | None = None,
    callbacks: Sequence[Any] = (),
    quiet: bool = False,
) -> CheckpointInfo:
    """Run the training the arguments describe; returns its last checkpoint.

    Args:
        parent: MLflow run this one is nested under.
        name: of the MLflow run; by default "pretrain" and the preset.
        tags: more tags of it.
        source: what made it; by default this process.
        callbacks: more Ray Train callbacks, beside the one that records.
    """
    warn_relative_output(args.output)
    args = dataclasses.replace(args, data=storage.absolute(args.data), output=storage.absolute(args.output))
    dataset = open_dataset(args.data)
    check(args, dataset)
    with claimed(args.output):
        run = prepare_output(args, dataset)
        if run and run["finished"]:
            info = read_info(latest_checkpoint(args.output))
            mlflow_run.send_unsent(args.output, resumed_uri(args.mlflow_uri, args.output, run))
            print(f"nothing to do: {args.output} finished its {info.step} steps (--overwrite starts again)")
            return info
        workers = Workers(
            number=parse_workers(args.num_workers), threads=args.threads, device=args.device,
            max_failures=args.max_failures, wait_s=args.wait_for_resources, spread=args.spread,
        )  # fmt: skip
        mlflow_run.require_store(resumed_uri(args.mlflow_uri, args.output, run))
        require_resources(workers, {"--data": args.data, "--output": args.output})
        dataset.check_shards()
        if args.overwrite:
            storage.clear(args.output)
        run, tracker = start_or_resume(
            args, dataset, run, name=name or f"pretrain {args.preset}", parent=parent, source=source,
            tags={"ajepa.job": "pretrain", **(tags or {})},
        )  # fmt: skip
        start = time.perf_counter()
        with tracker.recording():
            tracker.log_dataset(dataset, "training")
            storage.make_folder(args.output)
            storage.write_text(storage.join(args.output, RUN_JSON), json.dumps(run, indent=1))
            job = partial(
                pretrain, config=args.config, dataset=dataset, output=args.output, resume_anyway=args.resume_anyway
            )
            try:
                fit(job, args.output, workers, [Reporter(args.output, quiet), *callbacks])
            finally:  # of a run that collapsed or was stopped, too
                describe(args.output, tracker)
            info = read_info(latest_checkpoint(args.output))
            if info.step < info.total_steps:  # a STOP file was put there
                print(f"stopped at step {info.step} of {info.total_steps}")
                raise KeyboardInterrupt
            done = {"finished": True, "mlflow_run": tracker.run_id}
            storage.write_text(storage.join(args.output, RUN_JSON), json.dumps(run | done, indent=1))
            tracker.log_text(args.config.to_json(), "config.json")
            if args.figures:
                draw(args, dataset, tracker)
        last = read_history(args.output)[-1]
        minutes = (time.perf_counter() - start) / 60
        print(
            f"{info.step} steps in {minutes:.1f} min, loss {last['loss']:.4f}; {last['verdict']}; "
            f"encoder at {args.output}"
        )
        return info


def describe(output: str, tracker: mlflow_run.Tracker) -> None:
    """What the history says of the run so far, as its description in MLflow."""
    with contextlib.suppress(OSError, UserError):  # a store that is away: what ended the training is what is said
        if history := read_history(output):
            tracker.describe(training_outcome(history))


def draw(args: PretrainArgs, dataset: ShardDataset, tracker: mlflow_run.Tracker) -> None:
    """Pictures of the run, in MLflow and, where the run folder is local, there under figures/."""
    from pipelines.reports import training_figures

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if storage.is_uri(args.output) else storage.join(args.output, "figures"))
        training_figures.draw_training(read_history(args.output), args.config.model.width, folder / "training.png")
        training_figures.draw_masks(dataset, args.config, folder / "masks.png")
        model = build_objective(args.config)
        model.load_state_dict(read_weights(latest_checkpoint(args.output)))
        training_figures.draw_predictions(model, dataset, folder / "predictions.png")
        for path in sorted(folder.iterdir()):
            tracker.log_file(path, "figures")
