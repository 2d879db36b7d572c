"""Reproduce an ablation table: one pretraining and probe per setting and seed, run by Ray Tune."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from ajepa import storage
from ajepa.choices import POOLINGS
from ajepa.config import PRESETS, Config, upgraded
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.evaluation.tables import markdown_table
from ajepa.experiments.settings import TABLES, with_seed, with_steps
from ajepa.shards.dataset import open_dataset
from ajepa.training.run_folder import read_history
from pipelines.ablate import AblateArgs
from pipelines.cli.config_file import config_from_file
from pipelines.cli.lock import claimed
from pipelines.cli.output import OutputType, open_output, refuse_changes, warn_relative_output
from pipelines.jobs import pretrain, probe
from pipelines.pretrain import PretrainArgs
from pipelines.probe import ProbeArgs
from pipelines.rayjobs.cluster import cluster_cpus, cluster_resource, start_ray
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining

ABLATION_JSON = "ablation.json"
ABLATION = OutputType("ablation folder", (ABLATION_JSON,))


@dataclass(frozen=True)
class Ablation:
    """One table of spec 10: how a value changes the config, and the values tried by default."""

    title: str
    default: tuple[str, ...]
    apply: Callable[[Config, str], Config]


def _ablation(name: str, *values: str) -> Ablation:
    """The table of this name, with the given values or those it has for `nano`."""
    table = TABLES[name]
    return Ablation(table.title, values or table.values(PRESETS["nano"]), table.apply)


ABLATIONS: dict[str, Ablation] = {
    "masking_ratio": _ablation("masking_ratio"),
    "masking_strategy": _ablation("masking_strategy"),
    "placement": _ablation("placement"),
    "predictor": _ablation("predictor", "1x96", "2x96", "4x96", "2x192"),
    "loss": _ablation("loss"),
    "target_layers": _ablation("target_layers"),
}


def trial_config(ablation: str, base: Config, value: str, seed: int) -> Config:
    """The config of one trial.

    Raises:
        UserError: a value the ablation does not know.
    """
    try:
        config = ABLATIONS[ablation].apply(base, value)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{value!r} is no value for the ablation {ablation}") from error
    return with_seed(config, seed)


def run_trial(params: dict[str, Any], uri: str) -> None:
    """One trial: pretrain and probe; both figures go to Tune and to the trial's MLflow run, at `uri`."""
    args: AblateArgs = params["args"]
    value, seed = params["value"], params["seed"]
    folder = storage.join(args.output, "trials", f"{value}-seed{seed}")
    config = trial_config(args.ablation, params["base"], value, seed)
    pretrain_args = PretrainArgs(
        data=args.data, output=folder, preset=args.preset, num_workers=args.num_workers, threads=args.threads,
        mlflow_uri=uri, config=config,
    )  # fmt: skip
    name = f"{args.ablation}={value} seed {seed}"
    pretrain.main(pretrain_args, parent=params["parent"], name=name, callbacks=[TuneReportCallback()], quiet=True)
    run = pretraining(folder)
    device: Literal["auto", "cpu"] = "auto" if ray.get_gpu_ids() else "cpu"  # other trials' GPUs are visible here
    rows = probe.main(
        ProbeArgs(encoder=(folder,), data=args.data, seeds=1, mlflow_uri=uri, threads=args.threads, device=device),
        parent=run.get("mlflow_run"),
    )
    last = read_history(folder)[-1]
    result = probe.metrics(rows) | {
        "effective_rank": last["effective_rank"],
        "loss": last["loss"],
        "step": last["step"],
        "metric": rows[0].metric,
    }
    tracker = mlflow_run.start_run(uri, name, output=folder, params={}, tags={}, resumed=run.get("mlflow_run", ""))
    with tracker.recording():
        tracker.log_metrics(last["step"], probe.metrics(rows))
    tune.report(result | {"finished": True})


def check(args: AblateArgs) -> tuple[Config, tuple[str, ...]]:
    """The base config and the values, everything checked before a single trial starts."""
    if args.ablation not in ABLATIONS:
        raise UserError(f"unknown ablation {args.ablation!r}: choose from {', '.join(ABLATIONS)}")
    if args.preset not in PRESETS:
        raise UserError(f"unknown preset {args.preset!r}: choose from {', '.join(PRESETS)}")
    if args.seeds < 1 or args.threads < 1 or args.num_workers < 0:
        raise UserError("--seeds and --threads must be positive, --num-workers not negative")
    if storage.is_uri(args.output):
        raise UserError("--output of an ablation is a local folder (shared between the nodes of a cluster)")
    values = args.values or ABLATIONS[args.ablation].default
    if len(set(values)) < len(values):
        raise UserError(f"--values has the same setting twice: {' '.join(values)}")
    base = PRESETS[args.preset]
    if args.config is not None:
        base = config_from_file(args.config, base)
    if args.max_steps:
        base = with_steps(base, args.max_steps)
    for value in values:
        trial_config(args.ablation, base, value, 0)
    return base, values


def prepare_output(
    args: AblateArgs, base: Config, dataset_hash: str, uri: str
) -> tuple[dict[str, Any], mlflow_run.Tracker]:
    """What the ablation is, and its MLflow parent run: a new one, or that of the same ablation found at the output."""
    settings = {
        "ablation": args.ablation, "preset": args.preset, "config": json.loads(base.to_json()),
        "dataset_hash": dataset_hash,
    }  # fmt: skip
    params = {k: v for k, v in settings.items() if k != "config"} | {"max_steps": base.train.max_steps}
    about: dict[str, Any] = {
        "name": f"ablate {args.ablation}", "output": args.output, "params": params, "tags": {"ajepa.job": "ablate"},
    }  # fmt: skip
    found = open_output(args.output, ABLATION)
    if found is None:
        return settings, mlflow_run.start_run(uri, **about)
    old = {name: found.content[name] for name in settings}
    old["config"] = upgraded(old["config"])
    refuse_changes(args.output, "another ablation or other data", old, settings, "choose another folder")
    return settings, mlflow_run.start_run(uri, resumed=found.content["mlflow_run"], **about)


def trial_resources(args: AblateArgs) -> tuple[dict[str, float], int]:
    """What a trial holds itself, beside the workers that it starts, and how many trials run at a time: no more than the
    cluster has CPUs and, if it has any, GPUs for.

    Raises:
        UserError: not even one.
    """
    cpus, gpus = cluster_cpus(), cluster_resource("GPU")
    need = {"CPU": (args.num_workers or args.threads, cpus)}
    if gpus:
        need["GPU"] = (args.num_workers or 1, gpus)
    for resource, (wanted, have) in need.items():
        if wanted > have:
            raise UserError(f"a trial needs {wanted} {resource}s, the cluster has {have}")
    limit = min(have // wanted for wanted, have in need.values())
    if args.num_workers:  # Ray Train's workers bring their own
        return {"cpu": 0}, limit
    return {"cpu": args.threads, "gpu": 1 if gpus else 0}, limit


def main(args: AblateArgs) -> pd.DataFrame:
    """Run all trials; returns the table, a row a setting."""
    base, values = check(args)
    warn_relative_output(args.output)
    args = dataclasses.replace(args, data=storage.absolute(args.data), output=storage.absolute(args.output))
    dataset = open_dataset(args.data)
    uri = mlflow_run.tracking_uri(args.mlflow_uri, args.output)
    args = dataclasses.replace(args, mlflow_uri=None)  # Ray Tune writes it to files, and it may hold a password
    with claimed(args.output):
        settings, tracker = prepare_output(args, base, dataset.content_hash, uri)
        with tracker.recording():
            about = settings | {"mlflow_run": tracker.run_id}
            storage.write_text(storage.join(args.output, ABLATION_JSON), json.dumps(about))
            start_ray()
            resources, limit = trial_resources(args)
            os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(run_trial, uri=uri), resources),
                param_space={
                    "value": tune.grid_search(list(values)),
                    "seed": tune.grid_search(list(range(args.seeds))),
                    "args": args, "base": base, "parent": tracker.run_id,
                },
                tune_config=tune.TuneConfig(max_concurrent_trials=limit),
                run_config=tune.RunConfig(storage_path=storage.join(args.output, "ray"), name="tune", verbose=0),
            )  # fmt: skip
            results = tuner.fit()
            trials = [
                r.metrics | {"value": r.metrics["config"]["value"]}
                for r in results
                if r.metrics and r.metrics.get("finished")
            ]
            table = summarise(trials, values)
            write_report(args, table, trials, tracker)
            if results.num_errors:
                last = str(results.errors[0]).strip().splitlines()[-1]
                raise UserError(
                    f"{results.num_errors} of {len(results)} trials failed ({last}); run it again to resume"
                )
        print(f"\n{len(trials)} trials; table, CSV and figure in {args.output}; look: {mlflow_run.ui_command(uri)}")
        return table


def score(trial: dict[str, Any], features: str, pooling: str) -> float:
    """Accuracy or mAP of one line of a trial's probe."""
    return trial[probe.metric_name(trial["metric"], features, pooling)]


def summarise(trials: Sequence[dict[str, Any]], values: Sequence[str]) -> pd.DataFrame:
    """A row a setting in the order given: accuracies over seeds and the effective rank."""
    rows = []
    for value in values:
        own = [t for t in trials if t["value"] == value]
        if own:
            rows.append({
                "setting": value,
                "seeds": len(own),
                **{
                    f"{name}, {pooling}": float(np.mean([score(t, name, pooling) for t in own]))
                    for name in (PRETRAINED, RANDOM) for pooling in POOLINGS
                },
                "std over seeds": float(np.std([score(t, PRETRAINED, "mean") for t in own])),
                "effective rank": float(np.mean([t["effective_rank"] for t in own])),
            })  # fmt: skip
    return pd.DataFrame(rows)


def write_report(
    args: AblateArgs, table: pd.DataFrame, trials: Sequence[dict[str, Any]], tracker: mlflow_run.Tracker
) -> None:
    """table.md, table.csv and figure.png in the output folder and in MLflow's parent run."""
    if table.empty:
        return
    from pipelines.reports import training_figures

    folder = Path(args.output)
    text = markdown_table(list(table.columns), table.to_numpy(object).tolist())
    storage.write_text(str(folder / "table.md"), text + "\n")
    storage.write_text(str(folder / "table.csv"), table.to_csv(index=False))
    accuracies = [[score(t, PRETRAINED, "mean") for t in trials if t["value"] == v] for v in table["setting"]]
    baselines = {
        RANDOM: float(np.mean([score(t, RANDOM, "mean") for t in trials])),
        MEL: float(score(trials[0], MEL, "mean")),
    }
    title = f"{ABLATIONS[args.ablation].title} ({args.preset}, mean pooling)"
    training_figures.draw_ablation(title, list(table["setting"]), accuracies, baselines, folder / "figure.png")
    for name in ("table.md", "table.csv", "figure.png"):
        tracker.log_file(folder / name)
    print(text)
