"""Fill tables: the trials of `ajepa.experiments`, placed by Ray Tune and recorded in MLflow. Killed at any time, the
same command goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ajepa import storage
from ajepa.choices import Evaluation, Unlabelled
from ajepa.config import PRESETS, Config
from ajepa.config_json import upgraded
from ajepa.errors import UserError
from ajepa.evaluation.comparison import PRETRAINED
from ajepa.experiments.plan import measured_rate
from ajepa.experiments.probe_sets import open_probes
from ajepa.experiments.runner import TABLE_FOLDER, FilledTable, Work, open_work, summary, trial_folder
from ajepa.experiments.settings import default_of, with_steps
from ajepa.experiments.trial import Trial
from ajepa.experiments.trial import run_trial as train_and_probe
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.training.run_folder import read_history
from pipelines.cli.config_file import config_from_file
from pipelines.cli.lock import claimed
from pipelines.cli.output import OutputType, open_output, refuse_changes, warn_relative_output
from pipelines.jobs import pretrain
from pipelines.pretrain import PretrainArgs
from pipelines.rayjobs.cluster import cluster_cpus, cluster_resource, largest_node, start_ray
from pipelines.rayjobs.nodes import check_nodes
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining
from pipelines.tracking.outcomes import training_outcome
from pipelines.tracking.score_outcomes import table_outcome
from pipelines.tracking.source import RunSource

if TYPE_CHECKING:  # the commands import this module
    from pipelines.ablate import AblateArgs

ABLATION_JSON = "ablation.json"
ABLATION = OutputType("ablation folder", (ABLATION_JSON,))
FORMAT_VERSION = 2  # of ablation.json; before, a folder held one table and its trials by value


@dataclass(frozen=True)
class Job:
    """What all trials have in common. Small: it travels to their processes, which read the rest themselves."""

    data: str
    probes: tuple[str, ...]
    unlabelled: Unlabelled
    evaluations: Sequence[Evaluation]
    output: str
    preset: str
    num_workers: int
    threads: int
    parent: str  # MLflow run of the tables
    source: RunSource  # of the command, for the runs of its trials
    names: Mapping[str, str]  # of settings in MLflow, by their trials' keys, with {} for the seed
    settings: Mapping[str, Mapping[str, str]]  # tags of their runs, by the same


def run_trial(params: dict[str, Any], job: Job, trials: Sequence[Trial], uri: str) -> None:
    """One trial of Ray Tune: train and probe what is missing; scores go to the MLflow run of its training, at `uri`."""
    import ray
    from ray import tune

    trial = trials[params["trial"]]
    # GPUs of other trials may be visible here. Workers bring their own.
    own: Literal["cuda", "cpu"] = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
    torch.set_num_threads(job.threads)
    name = job.names.get(trial.key, f"{trial.name} seed {{}}").format(trial.seed)
    tags = {**job.settings.get(trial.key, {}), "ajepa.seed": str(trial.seed)}

    def train(config: Config, data: ShardDataset, run: str) -> None:
        args = PretrainArgs(
            data=data.path, output=run, preset=job.preset, num_workers=job.num_workers, threads=job.threads,
            device="auto" if job.num_workers else own, figures=False, mlflow_uri=uri, config=config,
        )  # fmt: skip
        pretrain.main(args, parent=job.parent, name=name, tags=tags, source=job.source, quiet=True)

    data, folder = open_dataset(job.data), trial_folder(job.output, trial)
    probes = open_probes(job.probes, data, job.unlabelled)
    result = train_and_probe(trial, data, probes, job.evaluations, folder, torch.device(own), train)
    if trial.kind == PRETRAINED:
        run = pretraining(storage.join(folder, "run")).get("mlflow_run", "")
        tracker = mlflow_run.start_run(
            uri, name, output=folder, params={}, tags=tags, resumed=run, parent=job.parent or None, source=job.source
        )
        with tracker.recording():
            for probe in probes:
                tracker.log_dataset(probe.dataset, "evaluation")
            tracker.log_metrics(result["steps"], metrics(result), "probe")
            history = read_history(storage.join(folder, "run"))
            tracker.describe(f"**{summary(result)}**\n\n{training_outcome(history)}")
    print(f"{trial.name} seed {trial.seed}: {summary(result)}")
    tune.report(metrics(result))


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """A trial's scores as MLflow metrics."""
    scores = result["scores"]
    return {mlflow_run.metric_name(s["protocol"], s["pooling"], s["data"]["name"]): s["score"] for s in scores}


def settings_of(work: Work) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Names of the settings that are trained, and tags with their place in each table, by the keys of their trials. A
    name begins with what differs from the default, for MLflow's table shows some twelve characters: "0.5 seed {}
    (masking_ratio)"."""
    tags: dict[str, dict[str, str]] = {}
    others: dict[str, dict[str, str]] = {}
    for table, configs in work.plan.tables.items():
        default = default_of(configs, work.plan.base)
        for setting, config in configs.items():
            key = Trial(PRETRAINED, config, work.data.clips_hash).key
            tags.setdefault(key, {})[f"ajepa.{table}"] = setting
            if setting != default or len(work.plan.tables) == 1:
                others.setdefault(key, {})[table] = setting
    names = dict.fromkeys(tags, "default seed {}")
    names |= {key: f"{', '.join(found.values())} seed {{}} ({', '.join(found)})" for key, found in others.items()}
    return names, tags


def base_config(args: AblateArgs) -> Config:
    """The config that the settings change.

    Raises:
        UserError: options that make no sense, before anything is opened.
    """
    if args.preset not in PRESETS:
        raise UserError(f"unknown preset {args.preset!r}: choose from {', '.join(PRESETS)}")
    if args.seeds < 1 or args.threads < 1 or args.num_workers < 0 or args.first_seed < 0:
        raise UserError("--seeds and --threads must be positive, --num-workers and --first-seed not negative")
    if args.gpus_per_trial is not None:
        if args.num_workers:
            raise UserError("--gpus-per-trial is for trials without workers: with --num-workers each has its own")
        if args.gpus_per_trial < 0 or (args.gpus_per_trial > 1 and args.gpus_per_trial % 1):
            raise UserError(f"--gpus-per-trial {args.gpus_per_trial:g}: give a whole number or a fraction of one")
    base = PRESETS[args.preset]
    if args.config is not None:
        base = config_from_file(args.config, base)
    return base if args.max_steps is None else with_steps(base, args.max_steps)


def prepare_output(args: AblateArgs, settings: dict[str, Any]) -> str | None:
    """Check what the output holds. None: start afresh; else the MLflow run of what is to be resumed.

    Raises:
        UserError: something else, trials of another recipe or of other data, or a damaged ablation.json.
    """
    found = open_output(args.output, ABLATION)
    if found is None:
        return None
    if found.content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"--output {args.output!r} holds an ablation of another version of ajepa: choose another")
    found.require(mlflow_run=str, config=dict)
    with found.refusing_damage():
        old = {name: found.content[name] for name in settings}
        old["config"] = upgraded(old["config"])
    refuse_changes(args.output, "trials of another recipe or other data", old, settings, "choose another folder")
    return str(found.content["mlflow_run"])


def start_tracking(args: AblateArgs, settings: dict[str, Any], uri: str, resumed: str | None) -> mlflow_run.Tracker:
    """The MLflow run of the tables, parent of those of the trials."""
    params = {name: settings[name] for name in ("preset", "dataset_hash", "equal_compute")}
    return mlflow_run.start_run(
        uri, f"ablate {' '.join(args.tables)}", output=args.output, tags={"ajepa.job": "ablate"}, resumed=resumed,
        params=params | {"max_steps": settings["config"]["train"]["max_steps"]},
    )  # fmt: skip


def trial_resources(args: AblateArgs) -> tuple[dict[str, float], int | None]:
    """What a trial holds itself, and how many may run at a time; None: as many as the cluster has resources for.

    Raises:
        UserError: not even one.
    """
    if args.num_workers:  # Ray Train's workers bring their own: nothing but their number keeps trials from waiting
        need = {"CPU": (args.num_workers, cluster_cpus())}
        if gpus := cluster_resource("GPU"):
            need["GPU"] = (args.num_workers, gpus)
        for resource, (wanted, have) in need.items():
            if wanted > have:
                raise UserError(f"a trial needs {wanted} {resource}s, the cluster has {have}")
        return {"cpu": 0}, min(have // wanted for wanted, have in need.values())
    share = args.gpus_per_trial
    if share is None:
        share = 1.0 if cluster_resource("GPU") else 0.0
    for resource, asked in (("CPU", args.threads), ("GPU", share)):
        if asked > (most := largest_node(resource)):
            raise UserError(f"a trial needs {asked:g} {resource}s, no node has more than {most:g}")
    return {"cpu": args.threads, "gpu": share}, None


def run_with_tune(trials: Sequence[Trial], job: Job, resources: dict[str, float], limit: int | None, uri: str) -> int:
    """Run trials, as many at a time as there are resources for; how many failed. Their results are in the output."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    with tempfile.TemporaryDirectory() as scratch:  # Tune's own notes: a trial's state is in its folder
        trial = tune.with_parameters(run_trial, job=job, trials=list(trials), uri=uri)
        tuner = tune.Tuner(
            tune.with_resources(trial, resources),
            param_space={"trial": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=limit),
            run_config=tune.RunConfig(storage_path=scratch, name="tune", verbose=0),
        )  # fmt: skip
        found = tuner.fit()
    for one, outcome in zip(trials, found, strict=True):
        if outcome.error is not None:
            reason = str(outcome.error).strip().splitlines()[-1]
            print(f"{one.name} seed {one.seed} failed: {reason}")
    return int(found.num_errors)


def main(args: AblateArgs) -> dict[str, FilledTable]:
    """Run the trials that are missing; returns the tables by name."""
    base = base_config(args)
    warn_relative_output(args.output)
    args = dataclasses.replace(args, data=storage.absolute(args.data), output=storage.absolute(args.output))
    work = open_work(
        args.tables, base, args.data, args.output, probe_data=[storage.absolute(path) for path in args.probe_data],
        protocols=args.protocol, finetune=args.finetune, values=args.values,
        seeds=range(args.first_seed, args.first_seed + args.seeds), equal_compute=args.equal_compute,
        results=args.results, unlabelled=args.unlabelled,
    )  # fmt: skip
    if args.dry_run:
        torch.set_num_threads(args.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(work.describe(measured_rate(base, device)))
        return {}
    left = work.left()
    uri = mlflow_run.tracking_uri(args.mlflow_uri, args.output)
    settings = {
        "format_version": FORMAT_VERSION, "preset": args.preset, "config": json.loads(base.to_json()),
        "dataset_hash": work.data.content_hash, "equal_compute": args.equal_compute,
    }  # fmt: skip
    with claimed(args.output):
        resumed = prepare_output(args, settings)
        mlflow_run.require_store(uri)
        resources: dict[str, float] = {}
        limit = None
        if left:
            start_ray()
            check_nodes({"--data": args.data, "--output": args.output})
            resources, limit = trial_resources(args)
        tracker = start_tracking(args, settings, uri, resumed)
        with tracker.recording():
            for dataset, context in ((work.data, "training"), *((p.dataset, "evaluation") for p in work.probes)):
                tracker.log_dataset(dataset, context)
            storage.make_folder(args.output)
            about = json.dumps(settings | {"mlflow_run": tracker.run_id})
            storage.write_text(storage.join(args.output, ABLATION_JSON), about)
            job = Job(
                args.data, tuple(probe.dataset.path for probe in work.probes), args.unlabelled, work.evaluations,
                args.output, args.preset, args.num_workers, args.threads, tracker.run_id,
                tracker.source, *settings_of(work),
            )  # fmt: skip
            failed = run_with_tune(left, job, resources, limit, uri) if left else 0
            made = work.write()
            record(made, args.output, tracker)
            if failed:
                raise UserError(f"{failed} of {len(left)} trials failed: run it again to resume")
            if work.left():  # Tune returns early on Ctrl-C
                raise KeyboardInterrupt
        print(
            f"\n{len(left)} trials; tables in {args.output}; look (Model training, top left): "
            f"{mlflow_run.ui_command(uri)}"
        )
    return made


def record(made: Mapping[str, FilledTable], output: str, tracker: mlflow_run.Tracker) -> None:
    """Show the tables, draw them into the output, and put all into MLflow's parent run."""
    from pipelines.reports.table_figure import draw_table

    tracker.describe("\n\n".join(table_outcome(table.title, table.lines) for table in made.values()))
    with tempfile.TemporaryDirectory() as scratch:
        for name, table in made.items():
            print(f"\n{table.markdown}")
            tracker.log_text(table.markdown, f"{name}.md")
            tracker.log_text(table.csv, f"{name}.csv")
            figure = Path(scratch, f"{name}.png")
            draw_table(table.title, table.lines, figure)
            with storage.atomic_output(storage.join(output, TABLE_FOLDER, figure.name)) as stream:
                stream.write(figure.read_bytes())
            tracker.log_file(figure)
