"""Fine-tune an encoder on labelled shards with Ray Train, or train one from scratch. Interrupted, the same command goes
on."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.checkpoints import FINETUNE_JSON, RUN_JSON
from ajepa.config import PRESETS as PRETRAINING
from ajepa.documents import require_types
from ajepa.errors import UserError
from ajepa.evaluation.tables import markdown_table
from ajepa.finetuning.classifier import MODEL_FOLDER
from ajepa.finetuning.clips import open_reader
from ajepa.finetuning.folds import plan_folds
from ajepa.finetuning.predict import metric_name
from ajepa.finetuning.run import Job, Result, finetune, read_result, read_test_logits
from ajepa.finetuning.start import FromScratch, Pretrained
from ajepa.finetuning.summary import Row, class_table, rows_of, summary_table
from ajepa.inference.shipped import encoder_path
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.labels import Labels, read_labels
from pipelines.cli.arguments import parse_workers
from pipelines.cli.lock import claimed
from pipelines.cli.output import OutputType, open_output, refuse_changes, warn_relative_output
from pipelines.rayjobs.train_job import Workers, fit, require_resources
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import exported_runs, pretraining, recorded_uri, resumed_uri
from pipelines.tracking.reporter import Reporter

if TYPE_CHECKING:  # the commands import this module
    from pipelines.finetune import FinetuneArgs

FINETUNING = OutputType("fine-tuning folder", (FINETUNE_JSON,))


def prepare_output(output: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Check what the output holds. None: start afresh; else finetune.json of what is to be resumed or finished.

    Raises:
        UserError: something else is there, a fine-tuning with other settings, or a damaged finetune.json.
    """
    found = open_output(output, FINETUNING, overwrite)
    if found is None:
        return None
    found.require(settings=dict, finished=bool, mlflow_run=str, mlflow_uri=(str, NoneType))
    old = found.content["settings"]
    with found.refusing_damage():
        require_types(old, label_names=list)
        if found.content["finished"]:
            require_types(found.content, metric=str)
            rows_in(found.content)
    if len(old["label_names"]) != len(settings["label_names"]):
        raise UserError(
            f"--output {output!r} holds heads of {len(old['label_names'])} labels, the data have "
            f"{len(settings['label_names'])}: go on with the data it was started with, or choose another --output"
        )
    advice = "resume it with its own, choose another --output, or --overwrite to replace it"
    refuse_changes(output, "a fine-tuning with other settings", old, settings, advice)
    return found.content


def main(args: FinetuneArgs) -> list[Row]:
    """Fine-tune, write models and tables, record them in MLflow; returns the table's rows."""
    if args.seeds < 1:
        raise UserError(f"--seeds must be positive, got {args.seeds}")
    if args.encoder is not None:
        args = dataclasses.replace(args, encoder=encoder_path(args.encoder))
    start, data = start_of(args), storage.absolute(args.data)
    dataset = open_dataset(data)
    origin: dict[str, str] = {}
    what: dict[str, Any] = {}
    if isinstance(start, Pretrained):
        audio = start.encoder(dataset, 0)
        dataset.require_front_end(audio.front_end)
        what, origin = {"encoder_digest": audio.about["digest"]}, pretraining(start.path)
    else:
        what = {"from_scratch": dataclasses.asdict(start.model)}
    labels = read_labels(dataset)
    fits = plan_folds(dataset, args.config, args.seeds, args.fold)
    output = output_of(args, start, dataset)
    workers = parse_workers(args.num_workers)
    for number in {workers} if isinstance(workers, int) else range(workers[0], workers[1] + 1):
        open_reader(args.config, dataset, labels, fits[0].train, 0, max(1, number))  # says what does not divide
    settings = {
        "config": args.config.to_dict(), **what, "seeds": args.seeds, "fold": args.fold, "probe": args.probe,
        "dataset_hash": dataset.content_hash, "label_names": list(dataset.label_names),
    }  # fmt: skip
    with claimed(output):
        found = prepare_output(output, settings, args.overwrite)
        if found and found["finished"]:
            rows = rows_in(found)
            mlflow_run.send_unsent(output, resumed_uri(args.mlflow_uri, output, found))
            table = summary_table(rows, found["metric"])
            print(f"nothing to do: {output} is finished (--overwrite starts again)\n\n{table}")
            return rows
        on = Workers(
            number=workers, threads=args.threads, device=args.device, max_failures=args.max_failures,
            wait_s=args.wait_for_resources, spread=args.spread,
        )  # fmt: skip
        mlflow_run.require_store(resumed_uri(args.mlflow_uri, output, found, recorded_uri(origin)))
        encoder = {"--encoder": start.path} if isinstance(start, Pretrained) else {}
        require_resources(on, {"--data": data, "--output": output} | encoder)
        if args.overwrite:
            storage.clear(output)
        found, tracker = start_or_resume(args, output, settings, found, origin, dataset)
        job = Job(
            start=start, dataset=dataset, output=output, config=args.config, seeds=args.seeds, fold=args.fold,
            probe=args.probe, runs=exported_runs(origin) | {"finetune_run": tracker.run_id},
        )  # fmt: skip
        began = time.perf_counter()
        alone = f", fold {args.fold} alone" if args.fold is not None else ""
        print(f"{len(fits)} model{'s' * (len(fits) > 1)}: {fits[0].what}{alone}", flush=True)
        with tracker.recording():
            tracker.log_dataset(dataset, "training")
            storage.make_folder(output)
            storage.write_text(storage.join(output, FINETUNE_JSON), json.dumps(found, indent=1))
            fit(partial(finetune, job), output, on, [Reporter(output)])
            results = [result for f in fits if (result := read_result(output, f.name)) is not None]
            if len(results) < len(fits):  # a STOP file was put there
                print(f"stopped after {len(results)} of {len(fits)} models")
                raise KeyboardInterrupt
            rows = rows_of(results, from_scratch=isinstance(start, FromScratch))
            table = write_results(output, dataset, labels, results, rows, tracker)
            tracker.describe(f"**{metric_name(labels)} {rows[0].mean:.3f}**, {rows[0].model}\n\n{table}")
            scores = [{"model": r.model, "scores": [[*key, value] for key, value in r.scores.items()]} for r in rows]
            done = found | {
                "finished": True,
                "mlflow_run": tracker.run_id,
                "metric": metric_name(labels),
                "rows": scores,
            }
            storage.write_text(storage.join(output, FINETUNE_JSON), json.dumps(done, indent=1))
        minutes = (time.perf_counter() - began) / 60
        print(f"\n{table}\n\n{len(fits)} models in {minutes:.1f} min; {metric_name(labels)} {rows[0].mean:.3f}")
        print(f'load one with ajepa.load_classifier("{storage.join(output, fits[0].name, MODEL_FOLDER)}")')
        return rows


def rows_in(content: dict[str, Any]) -> list[Row]:
    """The rows of the table in the finetune.json of a finished fine-tuning."""
    return [Row(r["model"], {(s, f): float(v) for s, f, v in r["scores"]}) for r in content["rows"]]


def start_of(args: FinetuneArgs) -> Pretrained | FromScratch:
    """The encoder that the options name.

    Raises:
        UserError: none, two, or a preset that there is not.
    """
    if (args.encoder is None) == (args.from_scratch is None):
        raise UserError("name what is trained: --encoder ENCODER, or --from-scratch PRESET for a random initialisation")
    if args.encoder is not None:
        return Pretrained(storage.absolute(args.encoder), args.branch)
    if args.from_scratch not in PRETRAINING:
        raise UserError(f"--from-scratch {args.from_scratch!r}: choose from {', '.join(PRETRAINING)}")
    if args.branch is not None:
        raise UserError("--branch is one of a pretraining's encoders: --from-scratch has none")
    return FromScratch(PRETRAINING[args.from_scratch].model)


def output_of(args: FinetuneArgs, start: Pretrained | FromScratch, dataset: ShardDataset) -> str:
    """The output folder as any process reads it."""
    if args.output is not None:
        warn_relative_output(args.output)
        return storage.absolute(args.output)
    if isinstance(start, FromScratch) or storage.path_type(storage.join(start.path, RUN_JSON)) != "file":
        raise UserError("--output is needed when the encoder is no run folder")
    return storage.join(start.path, "finetuned", f"{args.preset}-{dataset.content_hash[:8]}")


def start_or_resume(
    args: FinetuneArgs,
    output: str,
    settings: dict[str, Any],
    found: dict[str, Any] | None,
    origin: dict[str, str],
    dataset: ShardDataset,
) -> tuple[dict[str, Any], mlflow_run.Tracker]:
    """(finetune.json, tracker) of the fine-tuning at the output, made where there is none."""
    params = {k: v for k, v in settings.items() if k not in ("config", "label_names", "from_scratch")} | {
        **args.config.to_dict(), "preset": args.preset, "data": dataset.path, "output": output,
        "encoder": storage.absolute(args.encoder) if args.encoder else f"{args.from_scratch} from scratch",
        "num_workers": args.num_workers, "classes": len(dataset.label_names),
    }  # fmt: skip
    about: dict[str, Any] = {
        "name": f"finetune {args.preset}",
        "output": output,
        "params": params,
        "tags": {"ajepa.job": "finetune", "ajepa.pretrain_run": origin.get("mlflow_run", "")},
        "histories": True,
    }
    uri = resumed_uri(args.mlflow_uri, output, found, recorded_uri(origin))
    if found:
        print("resuming")
        tracker = mlflow_run.start_run(uri, resumed=found["mlflow_run"], **about)
    else:
        tracker = mlflow_run.start_run(uri, **about)
        found = {"settings": settings, "finished": False}
    return found | {"mlflow_uri": mlflow_run.shown(uri), "mlflow_run": tracker.run_id}, tracker


def write_results(
    output: str,
    dataset: ShardDataset,
    labels: Labels,
    results: Sequence[Result],
    rows: Sequence[Row],
    tracker: mlflow_run.Tracker,
) -> str:
    """results.json, table.md and per_class.md, at the output and in MLflow; returns the table."""
    metric = metric_name(labels)
    table = summary_table(rows, metric)
    logits = [read_test_logits(output, result.name) for result in results]
    classes = class_table(labels, dataset.label_names, logits)
    per_class = markdown_table(list(classes[0]), [list(row.values()) for row in classes])
    everything = {
        "metric": metric,
        "scores": {row.model: {"mean": row.mean, "by_seed": row.by_seed} for row in rows},
        "models": [dataclasses.asdict(result) for result in results],
        "classes": classes,
    }
    files = {
        "results.json": json.dumps(everything, indent=1),
        "table.md": table + "\n",
        "per_class.md": per_class + "\n",
    }
    for name, text in files.items():
        storage.write_text(storage.join(output, name), text)
        tracker.log_text(text, name)
    tracker.log_metrics(0, {f"test_{metric}_{row.model.replace(' ', '_').replace('-', '_')}": row.mean for row in rows})
    return table
