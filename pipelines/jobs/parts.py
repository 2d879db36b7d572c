"""A job that runs a model over clips: from its options to the finished folder, in one Ray Data job. What the model is,
and what its folder is called, a command's own job adds as a `PartJob`."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa

import ajepa
from ajepa import storage
from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.audio.segments import segment
from ajepa.audio.sources import chosen_columns, load_manifest
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference.part_folder import PartFolder
from ajepa.inference.part_writer import part_path
from ajepa.inference.shipped import is_shipped
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, open_dataset
from ajepa.shards.schema import BAD, OK
from pipelines.cli.clip_options import ClipOptions
from pipelines.cli.lock import claimed
from pipelines.cli.output import warn_relative_output
from pipelines.rayjobs.cluster import cluster_cpus, cluster_resource, join_cluster, start_ray
from pipelines.rayjobs.data_job import run_blocks, unfinished
from pipelines.rayjobs.each import on_cluster
from pipelines.rayjobs.early import refuse_other
from pipelines.rayjobs.part_actors import ActorSettings, PartActor
from pipelines.rayjobs.plan import ClipJob, block_size, manifest_hash, prepare_output
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import recorded_uri

F = TypeVar("F", bound=PartFolder)


@dataclass(frozen=True)
class Clips:
    """The clips of a job: files of a manifest, or the rows of shards, whose own bad clips are left out."""

    source: str
    manifest: Manifest
    dataset: ShardDataset | None
    part_size: int  # 0: a part a shard
    sizes: list[int]  # clips of each part

    def ids(self) -> pa.ChunkedArray:
        """Their ids, part after part."""
        return (self.manifest.clips if self.dataset is None else self.dataset.read_columns(["clip_id"]))["clip_id"]

    @property
    def hash(self) -> str:
        return manifest_hash(self.manifest.clips) if self.dataset is None else self.dataset.content_hash


@dataclass(frozen=True, kw_only=True)
class PartJob(ABC, Generic[F]):
    """What is particular to a command."""

    name: str  # of the command, "embed"
    title: str  # of the MLflow run
    kind: ClipJob[F]
    model: tuple[str, str]  # the option that names the model, and its path
    front_end: FrontEndConfig
    origin: dict[str, str]  # see `lineage.pretraining`
    settings: dict[str, Any]  # what the results depend on beside the clips: of the plan
    params: dict[str, Any]  # more for MLflow
    tags: dict[str, str]  # more for MLflow
    actor: type[PartActor[Any]]
    actor_settings: ActorSettings

    @abstractmethod
    def finish(self, output: str, expected: int, about: dict[str, Any]) -> F:
        """Write the last file, of which `about` is a part."""

    @abstractmethod
    def result(self, finished: F) -> str:
        """What the folder holds of each clip, in words."""

    def measure(self, finished: F) -> Mapping[str, float]:
        """Say what else there is to measure, and return it for MLflow."""
        return {}

    def after(self, finished: F, tracker: mlflow_run.Tracker | None) -> None:
        """What follows; without a tracker where the folder was finished already."""


def check(args: ClipOptions) -> None:
    """Options that can never go together.

    Raises:
        UserError: they do, or a value makes no sense.
    """
    for name in ("num_workers", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if args.max_seconds <= 0:
        raise UserError(f"--max-seconds must be positive, got {args.max_seconds:g}")
    block_size(0, args.clips_per_part, "--clips-per-part")
    if args.source != "shards":
        chosen_columns(args.source, args.columns)


def output_of(args: ClipOptions) -> str:
    """The output as any process reads it."""
    warn_relative_output(args.output)
    output = storage.absolute(args.output)
    storage.resolve(output)
    return output


def list_clips(args: ClipOptions, front_end: FrontEndConfig) -> Clips:
    """The clips of the input, in parts.

    Raises:
        UserError: nothing there, options that do not fit the source, or shards of another front end.
    """
    shards = args.source == "folder" and storage.path_type(storage.join(args.input, DATASET_JSON)) == "file"
    if args.source != "shards" and not shards:
        manifest = load_manifest(
            args.source, args.input, labels_from_folders=args.labels_from_folders, columns=args.columns,
            each=on_cluster,
        )  # fmt: skip
        if args.segment is not None:
            manifest = segment(manifest, args.segment, args.segment_last, front_end)
        total = manifest.clips.num_rows
        size = block_size(total, args.clips_per_part, "--clips-per-part")
        sizes = block_sizes(manifest.clips, size)
        return Clips(args.source, manifest, None, size, sizes)
    for name in ("labels_from_folders", "segment", "clips_per_part", "columns"):
        if getattr(args, name) not in (None, False, ()):
            raise UserError(f"--{name.replace('_', '-')} is for audio files; {args.input!r} holds shards")
    dataset = open_dataset(args.input)
    dataset.require_front_end(front_end)
    dataset.check_shards()
    left_out = f"{dataset.num_failed} clips of the shards were bad already and are left out"
    remarks = (left_out,) if dataset.num_failed else ()
    manifest = Manifest(MANIFEST_SCHEMA.empty_table(), list(dataset.label_names), remarks)
    return Clips("shards", manifest, dataset, 0, [shard.rows for shard in dataset.shards])


def run_job(args: ClipOptions, job: PartJob[F]) -> F:
    """Run the job to its end; returns the finished folder."""
    output, (option, model) = job.actor_settings.output, job.model
    with claimed(output):
        # To list and measure the files may take hours: whatever can be refused without them is refused first.
        refuse_other(output, job.kind, args.overwrite)
        uri = mlflow_run.tracking_uri(args.mlflow_uri or recorded_uri(job.origin), output)
        mlflow_run.require_store(uri)
        paths = {} if is_shipped(model) else {option: model}
        join_cluster({"--output": output, **paths, "--input": storage.absolute(args.input)})
        clips = list_clips(args, job.front_end)
        for remark in clips.manifest.remarks:
            print(f"note: {remark}", flush=True)
        plan = {
            "source": clips.source, "input": storage.absolute(args.input), "clips": sum(clips.sizes),
            "input_hash": clips.hash, "part_size": clips.part_size, "label_names": clips.manifest.label_names,
            **job.settings,
        }  # fmt: skip
        finished = prepare_output(output, job.kind, plan, clips.manifest, clips.sizes, args.overwrite)
        if finished is not None:
            mlflow_run.send_unsent(output, uri)
            print(f"nothing to do: {output} is finished ({finished.num_clips} clips, {job.result(finished)})")
            job.after(finished, None)
            return finished
        tracker = mlflow_run.start_run(
            uri,
            job.title,
            output=output,
            params={k: v for k, v in plan.items() if k != "label_names"}
            | {option.lstrip("-"): model, "output": output, **job.params},
            tags={"ajepa.job": job.name, "ajepa.pretrain_run": job.origin.get("mlflow_run", ""), **job.tags},
        )
        with tracker.recording():
            if clips.dataset is not None:
                tracker.log_dataset(clips.dataset, "inference")
            else:
                profile = {"clips": plan["clips"], "source": clips.source}
                tracker.log_input(plan["input"], clips.hash, "inference", profile)
            totals = run_parts(clips, job, args.num_workers)
            about = {
                "input": {"source": clips.source, "path": plan["input"], "hash": clips.hash},
                "label_names": clips.manifest.label_names,
                "plan": plan,
                "remarks": clips.manifest.remarks,
                "mlflow_run": tracker.run_id,
                "version": ajepa.__version__,
            }
            finished = job.finish(output, plan["clips"], about)
            storage.delete(storage.join(output, PLAN))
            rate = totals["clips"] / max(totals["seconds"], 1e-9)
            tracker.log_metrics(0, {
                "clips_ok": finished.num_clips, "clips_bad": finished.num_failed,
                "hours": finished.info["counts"]["hours"], "seconds": totals["seconds"], "clips_per_second": rate,
                **job.measure(finished),
            })  # fmt: skip
            tracker.describe(f"**{finished.num_clips} clips**, {finished.num_failed} bad: {job.result(finished)}")
            tracker.log_text(json.dumps(finished.info, indent=1), job.kind.marker)
            job.after(finished, tracker)
        _print_summary(finished, job.result(finished), totals, rate)
        return finished


def run_parts(clips: Clips, job: PartJob[F], num_workers: int | None) -> dict[str, Any]:
    """Write the parts that are missing, with live progress; totals of this part of the job.

    Raises:
        UserError: more workers than the cluster has GPUs or CPUs, or what stopped the job.
    """
    output = job.actor_settings.output
    paths = [part_path(output, OK, i) for i in range(len(clips.sizes))]
    todo = unfinished(output, paths, clips.sizes, clips.ids, "parts")
    missing = sum(clips.sizes[i] for i in todo)
    if not todo:
        return run_blocks(job.name, todo, missing, job.actor)
    from ray.data import ActorPoolStrategy

    start_ray(dashboard=False)
    gpus, cpus = cluster_resource("GPU"), cluster_cpus()
    have, resource = (gpus, "GPU") if gpus else (cpus, "CPU")
    if (num_workers or 1) > have:
        raise UserError(f"--num-workers {num_workers} needs as many {resource}s; the cluster has {have}")
    workers = min(num_workers or have, len(todo))
    threads = max(1, cpus // workers) if gpus else 1
    settings = dataclasses.replace(
        job.actor_settings,
        shards=None if clips.dataset is None else clips.dataset.path,
        device="cuda" if gpus else "cpu",
        threads=threads,
    )
    return run_blocks(
        job.name, todo, missing, job.actor,
        fn_constructor_args=(settings,),
        # A part at a time: parts that wait in one actor's queue are missed by another that is free.
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        num_gpus=1 if gpus else None,
    )  # fmt: skip


def _print_summary(finished: PartFolder, result: str, totals: dict[str, Any], rate: float) -> None:
    info = finished.info
    if totals["cut"]:
        print(f"note: {totals['cut']} clips were longer than {info['plan']['max_seconds']:g} s and cut (--max-seconds)")
    stages = ", ".join(f"{n} {stage}" for stage, n in sorted(info["counts"]["bad_by_stage"].items()))
    print(
        f"{finished.num_clips} clips ok, {finished.num_failed} bad{f' ({stages}; see {BAD})' if stages else ''}, "
        f"{result} in {len(finished.parts)} parts at {finished.path}; {totals['seconds']:.1f} s, {rate:.0f} clips/s"
    )
