"""Audio files to verified log-mel shards, as one Ray Data job. Interrupted at any time, the same command goes on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

import ajepa
from ajepa import storage
from ajepa.audio.archives.each import in_threads
from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest
from ajepa.audio.segments import segment
from ajepa.audio.sources import chosen_columns, load_manifest
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.append import read_plan
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, finish_dataset, open_dataset
from ajepa.shards.duplicates import Findings, find_in
from ajepa.shards.estimate import estimate
from ajepa.shards.merge import merge_datasets
from ajepa.shards.schema import BAD, OK
from ajepa.shards.verify import verify_dataset
from ajepa.shards.writer import shard_path
from pipelines.cli.lock import claimed
from pipelines.cli.output import warn_relative_output
from pipelines.cli.progress import Progress
from pipelines.rayjobs.cluster import join_cluster
from pipelines.rayjobs.copies import drop_copies
from pipelines.rayjobs.data_job import run_blocks, unfinished
from pipelines.rayjobs.each import on_cluster
from pipelines.rayjobs.early import refuse_other
from pipelines.rayjobs.plan import MISSING, SHARDS, block_size, make_plan, prepare_output
from pipelines.reports.copies_report import notes
from pipelines.tracking import mlflow_run
from pipelines.tracking.mlflow_run import Tracker
from pipelines.tracking.outcomes import dataset_outcome

if TYPE_CHECKING:  # the commands import this module
    from pipelines.preprocess import MergeArgs, PreprocessArgs

REPORT = "report"  # folder of the end report in the dataset


def verify(path: str) -> None:
    """Check a dataset with live progress and say what was checked."""
    dataset = open_dataset(path)
    with Progress("verify", dataset.num_clips) as progress:
        for rows in verify_dataset(path):
            progress.update(rows)
    print(f"intact: {dataset.num_clips} clips in {len(dataset.shards)} shards, hash {dataset.content_hash}")


def merge(args: MergeArgs) -> ShardDataset:
    """Join finished datasets with live progress and print the result."""
    output = storage.absolute(args.output)
    clips = sum(open_dataset(path).num_clips for path in args.merge)
    with claimed(output), Progress("merge", clips) as progress:
        for rows in merge_datasets(args.merge, output):
            progress.update(rows)
        dataset = open_dataset(output)
        save_report(dataset, [], 0)
    for note in notes(find_in(dataset), f"{REPORT}/"):
        print(f"note: {note}")
    print(
        f"{dataset.num_clips} clips ok, {dataset.num_failed} bad, {dataset.hours:.2f} h in {len(dataset.shards)} "
        f"shards at {output}, hash {dataset.content_hash}"
    )
    return dataset


def list_clips(args: PreprocessArgs) -> Manifest:
    """The clips of the source, long recordings cut where that was asked for."""
    manifest = load_manifest(
        args.source, args.input, labels_from_folders=args.labels_from_folders, whole_videos=args.whole_videos,
        columns=args.columns, each=in_threads if args.dry_run else on_cluster,
    )  # fmt: skip
    if args.segment is not None:
        manifest = segment(manifest, args.segment, args.segment_last, args.front_end)
    print_remarks(manifest)
    return manifest


def print_remarks(manifest: Manifest) -> None:
    """Print what the source was taken for and what it left out, before work begins."""
    for remark in manifest.remarks:
        print(f"note: {remark}", flush=True)


def empty_classes(dataset: ShardDataset) -> list[str]:
    """A line on the labels that no good clip has, if there are any."""
    found = set(pc.unique(pc.list_flatten(dataset.read_columns(["labels"])["labels"])).to_pylist())
    empty = [name for i, name in enumerate(dataset.label_names) if i not in found]
    if not empty:
        return []
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    return [f"no good clip has the label {', '.join(map(repr, empty[:5]))}{more}"]


def write_all(
    output: str, plan: dict[str, Any], clips: pa.Table, front_end: FrontEndConfig, num_workers: int | None
) -> dict[str, Any]:
    """Write the shards that are missing, with live progress; totals of this part of the job.

    Args:
        clips: those of the plan, in its order.
    """
    from ray.data import TaskPoolStrategy

    from pipelines.rayjobs.data_tasks import write_shards

    sizes, first = block_sizes(clips, plan["shard_size"]), plan.get("first_shard", 0)
    paths = [shard_path(output, OK, first + i) for i in range(len(sizes))]
    todo = unfinished(output, paths, sizes, lambda: clips["clip_id"], "shards")
    return run_blocks(
        "preprocess",
        todo,
        sum(sizes[i] for i in todo),
        write_shards,
        fn_kwargs={"output": output, "front_end": front_end, "first": first, "silent": plan["silent"]},
        compute=TaskPoolStrategy(size=num_workers and min(num_workers, max(1, len(todo)))),
        num_cpus=1,
    )


def save_report(dataset: ShardDataset, remarks: Sequence[str], missing: int, tracker: Tracker | None = None) -> None:
    """Write the end report into the dataset and, where there is a run, to MLflow."""
    from pipelines.reports.preprocess_report import write_report  # matplotlib

    storage.make_folder(storage.join(dataset.path, REPORT))
    with tempfile.TemporaryDirectory() as folder:
        for path in write_report(dataset, Path(folder), remarks, missing):
            with storage.atomic_output(storage.join(dataset.path, REPORT, path.name)) as stream:
                stream.write(path.read_bytes())
            if tracker is not None:
                tracker.log_file(path, REPORT)


def check(args: PreprocessArgs) -> None:
    """Options that can be refused without the files."""
    if args.num_workers is not None and args.num_workers < 1:
        raise UserError(f"--num-workers must be positive, got {args.num_workers}")
    block_size(0, args.clips_per_shard, "--clips-per-shard")
    chosen_columns(args.source, args.columns)
    if args.append and args.overwrite:
        raise UserError("--append adds to the dataset that --overwrite would delete: leave one of them out")


def main(args: PreprocessArgs) -> ShardDataset:
    """Run the job described by the arguments; returns the finished dataset."""
    warn_relative_output(args.output)
    output = storage.absolute(args.output)
    storage.resolve(output)
    check(args)
    with claimed(output):
        # To list and measure the files may take hours: whatever can be refused without them is refused first.
        refuse_other(output, SHARDS, args.overwrite)
        uri = mlflow_run.tracking_uri(args.mlflow_uri, output)
        mlflow_run.require_store(uri)
        join_cluster({"--output": output, "--input": storage.absolute(args.input)})
        manifest = list_clips(args)
        plan = make_plan(args.source, args.input, manifest, args.clips_per_shard, args.front_end)
        plan |= {"duplicates": args.duplicates, "silent": args.silent}
        sizes = block_sizes(manifest.clips, plan["shard_size"])
        finished = prepare_output(output, SHARDS, plan, manifest, sizes, args.overwrite)
        if finished is not None:
            if storage.path_type(storage.join(output, REPORT, "report.md")) == "missing":  # killed between the two
                save_report(finished, manifest.remarks, len(manifest.missing))
            mlflow_run.send_unsent(output, uri)
            print(f"nothing to do: {output} is finished ({finished.num_clips} clips, hash {finished.content_hash})")
            if read_plan(output) is not None:
                print("note: clips that were being added to it are unfinished: run that command with --append again")
            return finished
        params = mlflow_run.flatten({k: v for k, v in plan.items() if k != "label_names"}) | {"output": output}
        tracker = mlflow_run.start_run(
            uri, f"preprocess {args.source}", output=output, params=params, tags={"ajepa.job": "preprocess"}
        )
        with tracker.recording():
            log_source(tracker, plan)
            totals = write_all(output, plan, manifest.clips, args.front_end, args.num_workers)
            if args.duplicates == "drop":
                drop_copies(output, args.front_end, args.num_workers)
            about = {
                "plan": plan,
                "remarks": manifest.remarks,
                "missing": len(manifest.missing),
                "mlflow_run": tracker.run_id,
                "version": ajepa.__version__,
            }
            dataset = finish_dataset(output, args.front_end, manifest.label_names, plan["clips"], about)
            storage.delete(storage.join(output, PLAN))
            save_report(dataset, [*manifest.remarks, *empty_classes(dataset)], len(manifest.missing), tracker)
            found = find_in(dataset)
            record(tracker, dataset, totals, found, manifest.remarks)
        print_summary(dataset, totals, manifest, found)
        return dataset


def log_source(tracker: Tracker, plan: dict[str, Any]) -> None:
    """What the job reads, as an input of its MLflow run."""
    about = {"clips": plan["clips"], "source": plan["source"]}
    tracker.log_input(plan["input"], plan["manifest_hash"], "source", about)


def record(
    tracker: Tracker, dataset: ShardDataset, totals: dict[str, Any], found: Findings, remarks: Sequence[str]
) -> None:
    """Counts, speed, the dataset and dataset.json to MLflow.

    Args:
        remarks: on the source, for the run's description.
    """
    tracker.log_dataset(dataset, "result")
    tracker.describe(dataset_outcome(dataset, [*remarks, *notes(found, f"{REPORT}/")]))
    tracker.log_metrics(0, {
        "clips_ok": dataset.num_clips, "clips_bad": dataset.num_failed, "hours": dataset.hours,
        "seconds": totals["seconds"], "clips_per_second": rate_of(totals),
        "copies": len(found.copies), "copies_elsewhere": found.elsewhere,
        "silent": len(found.silent) + len(found.dropped_silent),
    })  # fmt: skip
    tracker.log_text(json.dumps(dataset.info, indent=1), DATASET_JSON)


def rate_of(totals: dict[str, Any]) -> float:
    """Clips a second."""
    return float(totals["clips"] / max(totals["seconds"], 1e-9))


def dry_run(args: PreprocessArgs) -> None:
    """Print what the job would cost, from a sample of its clips."""
    print_estimate(list_clips(args), args)


def print_estimate(manifest: Manifest, args: PreprocessArgs) -> None:
    for line in estimate(manifest, args.front_end).lines(args.num_workers or os.cpu_count() or 1):
        print(line)


def print_summary(dataset: ShardDataset, totals: dict[str, Any], manifest: Manifest, found: Findings) -> None:
    """What the job left for people: notes and the last line."""
    for note in notes(found, f"{REPORT}/"):
        print(f"note: {note}")
    for remark in empty_classes(dataset):
        print(f"note: {remark}")
    if manifest.missing:
        listed = storage.join(dataset.path, MISSING)
        print(f"note: {len(manifest.missing)} clips of the source have no audio file, listed in {listed}")
    if totals["cut"]:
        seconds = dataset.front_end.clip_frames / dataset.front_end.frame_rate
        print(f"note: {totals['cut']} clips were longer than {seconds:g} s and cut (--clip-frames)")
    stages = ", ".join(f"{n} {stage}" for stage, n in sorted(dataset.info["counts"]["bad_by_stage"].items()))
    print(
        f"{dataset.num_clips} clips ok, {dataset.num_failed} bad{f' ({stages}; see {BAD})' if stages else ''}, "
        f"{dataset.hours:.2f} h in {len(dataset.shards)} shards at {dataset.path}; "
        f"{totals['seconds']:.1f} s, {rate_of(totals):.0f} clips/s; report in {REPORT}/report.md"
    )
