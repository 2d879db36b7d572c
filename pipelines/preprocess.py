"""Audio files to verified log-mel shards, as one Ray Data job. Interrupted at any time, the same command goes on."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import tyro
from ray.data import DataContext, TaskPoolStrategy
from tqdm import tqdm

import ajepa
from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.audio.sources import SourceName, load_manifest
from ajepa.config import FrontEndConfig, differences
from ajepa.errors import UserError
from ajepa.shards.dataset import DATASET_JSON, ShardDataset, finish_dataset, open_dataset
from ajepa.shards.schema import BAD, OK
from ajepa.shards.verify import verify_dataset
from ajepa.shards.writer import shard_path, write_shard
from pipelines import tracking
from pipelines.common import parse, run_command, start_ray, warn_relative_output
from pipelines.estimate import estimate

PLAN = "_plan"  # of an unfinished job: plan.json and manifest.parquet, a row group a shard
MISSING = "missing.txt"  # clips the source lists and has no audio of, a line each
MAX_CLIPS_PER_SHARD = 500


@dataclass(frozen=True, kw_only=True)
class PreprocessArgs:
    """Turn audio into log-mel Parquet shards."""

    source: SourceName
    """Where clips come from: `folder` of audio files, `manifest` (CSV or Parquet with a column uri), or a copy of
    `esc50`, `speech_commands` (v2) or `audioset` in the layout of its authors."""
    input: str
    """The folder or manifest file; a local path or a URI (s3://, gs://, file://)."""
    output: str
    """The shard folder to write; a local path or a URI."""
    labels_from_folders: bool = False
    """Source `folder`: label each clip with the name of the subfolder it lies in."""
    whole_videos: bool = False
    """Source `audioset`: files hold whole videos' audio, to be cut at each segment's start."""
    clips_per_shard: int | None = None
    """Clips in a shard; by default an eighth of the clips, between 32 and 500."""
    num_workers: int | None = None
    """Tasks that run at once; by default one a CPU of the cluster."""
    dry_run: bool = False
    """Read a sample of the clips, say what the job would take and which share would fail, and write nothing."""
    overwrite: bool = False
    """Delete a dataset or an unfinished job found at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
    front_end: Annotated[FrontEndConfig, tyro.conf.arg(name="")] = field(default_factory=FrontEndConfig)


@dataclass(frozen=True, kw_only=True)
class VerifyArgs:
    """Read a finished dataset back and check every row of it."""

    verify: str
    """The shard folder; a local path or a URI."""


def parse_args(argv: Sequence[str]) -> PreprocessArgs | VerifyArgs:
    if any(a == "--verify" or a.startswith("--verify=") for a in argv):
        return parse(VerifyArgs, "Check every row of a finished dataset; the first rot is named.", argv)
    return parse(PreprocessArgs, f"{__doc__} With --verify SHARDS alone, check a finished dataset.", argv)


def verify(path: str) -> None:
    """Check a dataset with live progress and say what was checked."""
    dataset = open_dataset(path)
    with tqdm(total=dataset.num_clips, unit="clip", desc="verify", mininterval=1.0) as bar:
        for rows in verify_dataset(path):
            bar.update(rows)
    print(f"intact: {dataset.num_clips} clips in {len(dataset.shards)} shards, hash {dataset.content_hash}")


def list_clips(args: PreprocessArgs) -> Manifest:
    return load_manifest(
        args.source, args.input, labels_from_folders=args.labels_from_folders, whole_videos=args.whole_videos
    )


def plan_job(args: PreprocessArgs, manifest: Manifest) -> dict[str, Any]:
    """What makes a job the same job: its clips, labels, front end and shard size."""
    clips = manifest.clips.num_rows
    if args.num_workers is not None and args.num_workers < 1:
        raise UserError(f"--num-workers must be positive, got {args.num_workers}")
    shard_size = args.clips_per_shard or min(MAX_CLIPS_PER_SHARD, max(32, -(-clips // 8)))
    if shard_size <= 0:
        raise UserError(f"--clips-per-shard must be positive, got {shard_size}")
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, manifest.clips.schema) as stream:
        stream.write_table(manifest.clips.combine_chunks())
    return {
        "source": args.source,
        "input": storage.absolute(args.input),
        "clips": clips,
        "manifest_hash": hashlib.blake2b(buffer.getvalue(), digest_size=16).hexdigest(),
        "shard_size": shard_size,
        "front_end": dataclasses.asdict(args.front_end),
        "label_names": manifest.label_names,
    }


def prepare_output(output: str, plan: dict[str, Any], manifest: Manifest, overwrite: bool) -> ShardDataset | None:
    """Make the output ready for the job, or return the finished dataset of the same job found there.

    Raises:
        UserError: the output holds something else.
    """
    names = [n for n, _ in storage.list_files(output)] if storage.kind(output) == "folder" else []
    ours = DATASET_JSON in names or f"{PLAN}/plan.json" in names
    if storage.kind(output) == "file" or (names and not ours):
        raise UserError(f"--output {output!r} exists and is no shard folder: choose another")
    if ours and overwrite:
        storage.delete(output)
    elif DATASET_JSON in names:
        dataset = open_dataset(output)
        _refuse_other_job(output, dataset.info["plan"], plan, "a finished dataset")
        return dataset
    elif ours:
        _refuse_other_job(
            output,
            json.loads(storage.read_text(storage.join(output, PLAN, "plan.json"))),
            plan,
            "an unfinished job",
        )
        return None
    for folder in (PLAN, OK, BAD):
        storage.make_folder(storage.join(output, folder))
    if manifest.missing:
        storage.write_text(storage.join(output, MISSING), "".join(f"{clip}\n" for clip in manifest.missing))
    with storage.atomic_output(storage.join(output, PLAN, "manifest.parquet")) as stream:
        pq.write_table(manifest.clips, stream, row_group_size=plan["shard_size"])
    storage.write_text(storage.join(output, PLAN, "plan.json"), json.dumps(plan))
    return None


def _refuse_other_job(output: str, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    changed = differences(old, json.loads(json.dumps(new)))
    if changed:
        raise UserError(
            f"--output {output!r} holds {what} made from other input or settings ({'; '.join(changed[:4])}): "
            "choose another --output, or --overwrite to replace it"
        )


def write_shards(batch: dict[str, np.ndarray], output: str, front_end: FrontEndConfig) -> dict[str, Any]:
    """The map task: shard numbers in, a row of figures each out. The shard itself goes straight to storage."""
    torch.set_num_threads(1)  # a task a core
    with storage.open_input(storage.join(output, PLAN, "manifest.parquet")) as stream:
        manifest = pq.ParquetFile(stream)
        results = [write_shard(manifest.read_row_group(int(i)), int(i), output, front_end) for i in batch["item"]]
    return {
        "ok": np.array([r.ok for r in results]),
        "cut": np.array([r.cut for r in results]),
        "errors": np.array([json.dumps(r.errors) for r in results]),
    }


def write_all(output: str, plan: dict[str, Any], front_end: FrontEndConfig, num_workers: int | None) -> dict[str, Any]:
    """Write the shards that are missing, with live progress; figures of this part of the job."""
    shards = -(-plan["clips"] // plan["shard_size"])
    done = {name for name, _ in storage.list_files(storage.join(output, OK))}
    todo = [i for i in range(shards) if shard_path(output, OK, i).rpartition("/")[2] not in done]
    if len(todo) < shards:
        print(f"resuming: {shards - len(todo)} of {shards} shards are finished")
    figures: Counter[str] = Counter()
    start = time.perf_counter()
    if todo:
        start_ray()
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        job = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            write_shards,
            fn_kwargs={"output": output, "front_end": front_end},
            batch_size=None,
            compute=TaskPoolStrategy(size=min(num_workers, len(todo)) if num_workers else None),
            num_cpus=1,
        )
        missing = sum(min(plan["shard_size"], plan["clips"] - i * plan["shard_size"]) for i in todo)
        with tqdm(total=missing, unit="clip", desc="preprocess", mininterval=1.0) as bar:
            for row in job.iter_rows():
                errors = Counter(json.loads(row["errors"]))
                figures.update(ok=row["ok"], cut=row["cut"], failed=errors.total())
                bar.update(row["ok"] + errors.total())
                bar.set_postfix(failed=figures["failed"])
    return {
        "seconds": time.perf_counter() - start,
        "clips": figures["ok"] + figures["failed"],
        "cut": figures["cut"],
    }


def main(args: PreprocessArgs) -> ShardDataset:
    """Run the job described by the arguments; returns the finished dataset."""
    warn_relative_output(args.output)
    output = storage.absolute(args.output)
    storage.resolve(output)
    manifest = list_clips(args)
    plan = plan_job(args, manifest)
    finished = prepare_output(output, plan, manifest, args.overwrite)
    if finished is not None:
        print(f"nothing to do: {output} is finished ({finished.num_clips} clips, hash {finished.content_hash})")
        return finished
    uri = tracking.tracking_uri(args.mlflow_uri, output)
    params = tracking.flatten({k: v for k, v in plan.items() if k != "label_names"}) | {"output": output}
    tracker = tracking.start_run(uri, f"preprocess {args.source}", params=params, tags={"ajepa.job": "preprocess"})
    with tracker.recording():
        figures = write_all(output, plan, args.front_end, args.num_workers)
        about = {
            "plan": plan,
            "remarks": manifest.remarks,
            "missing": len(manifest.missing),
            "mlflow_run": tracker.run_id,
            "version": ajepa.__version__,
        }
        dataset = finish_dataset(output, args.front_end, manifest.label_names, plan["clips"], about)
        storage.delete(storage.join(output, PLAN))
        rate = figures["clips"] / max(figures["seconds"], 1e-9)
        tracker.log_metrics(0, {
            "clips_ok": dataset.num_clips, "clips_bad": dataset.num_failed, "hours": dataset.hours,
            "seconds": figures["seconds"], "clips_per_second": rate,
        })  # fmt: skip
        tracker.log_text(json.dumps(dataset.info, indent=1), DATASET_JSON)
    _print_summary(dataset, figures, rate, manifest)
    return dataset


def run(args: PreprocessArgs | VerifyArgs) -> None:
    if isinstance(args, VerifyArgs):
        verify(args.verify)
    elif args.dry_run:
        for line in estimate(list_clips(args), args.front_end).lines(args.num_workers or os.cpu_count() or 1):
            print(line)
    else:
        main(args)


def _print_summary(dataset: ShardDataset, figures: dict[str, Any], rate: float, manifest: Manifest) -> None:
    for remark in manifest.remarks:
        print(f"note: {remark}")
    if manifest.missing:
        listed = storage.join(dataset.path, MISSING)
        print(f"note: {len(manifest.missing)} clips of the source have no audio file, listed in {listed}")
    if figures["cut"]:
        seconds = dataset.front_end.clip_frames / dataset.front_end.frame_rate
        print(f"note: {figures['cut']} clips were longer than {seconds:g} s and cut (--clip-frames)")
    stages = ", ".join(f"{n} {stage}" for stage, n in sorted(dataset.info["counts"]["bad_by_stage"].items()))
    print(
        f"{dataset.num_clips} clips ok, {dataset.num_failed} bad{f' ({stages}; see {BAD})' if stages else ''}, "
        f"{dataset.hours:.2f} h in {len(dataset.shards)} shards at {dataset.path}; "
        f"{figures['seconds']:.1f} s, {rate:.0f} clips/s"
    )


if __name__ == "__main__":
    run_command(lambda: run(parse_args(sys.argv[1:])))
