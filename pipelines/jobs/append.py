"""More clips for a finished dataset, as one Ray Data job. Interrupted at any time, the same command goes on."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import ajepa
from ajepa import storage
from ajepa.audio.blocks import block_sizes
from ajepa.audio.manifest import Manifest
from ajepa.config_json import differences
from ajepa.errors import UserError
from ajepa.shards.append import (
    APPEND_JSON,
    NewClips,
    find_new,
    finish_append,
    is_appended,
    next_shard,
    read_plan,
    refuse_unlisted,
)
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, open_dataset
from ajepa.shards.duplicates import find_in
from ajepa.shards.schema import BAD, OK
from pipelines.cli.lock import claimed
from pipelines.cli.output import refuse_changes, warn_relative_output
from pipelines.jobs.preprocess import (
    check,
    empty_classes,
    list_clips,
    log_source,
    print_estimate,
    print_summary,
    record,
    save_report,
    write_all,
)
from pipelines.rayjobs.cluster import join_cluster
from pipelines.rayjobs.copies import drop_copies
from pipelines.rayjobs.early import refuse_other
from pipelines.rayjobs.plan import MISSING, SHARDS, make_plan, read_clip_ids, write_manifest
from pipelines.tracking import mlflow_run
from pipelines.tracking.mlflow_run import Tracker

if TYPE_CHECKING:  # the commands import this module
    from pipelines.preprocess import PreprocessArgs


def main(args: PreprocessArgs) -> ShardDataset:
    """Run the job described by the arguments; returns the grown dataset, which may be as it was."""
    warn_relative_output(args.output)
    output = storage.absolute(args.output)
    storage.resolve(output)
    check(args)
    if args.dry_run:
        dataset = require_dataset(output, args)
        manifest = list_clips(args)
        new = find_new(dataset, manifest)
        print_new(new)
        if new.clips.num_rows:
            print_estimate(dataclasses.replace(manifest, clips=new.clips), args)
        return dataset
    with claimed(output):
        refuse_other(output, SHARDS, False)
        dataset = require_dataset(output, args)
        uri = mlflow_run.tracking_uri(args.mlflow_uri, output)
        mlflow_run.require_store(uri)
        join_cluster({"--output": output, "--input": storage.absolute(args.input)})
        tidy_up(dataset)
        manifest = list_clips(args)
        unfinished = read_plan(output)
        new = find_new(dataset, manifest)
        if unfinished is not None:
            new = new.only(read_clip_ids(output, unfinished["shards"]), unfinished["label_names"])
        print_new(new)
        plan = prepare(dataset, args, manifest, new, unfinished)
        if plan is None:
            mlflow_run.send_unsent(output, uri)
            bad = f", {new.known_bad} of them bad" if new.known_bad else ""
            print(f"nothing to do: {output} has all {new.known} clips of the source{bad}")
            return dataset
        params = mlflow_run.flatten({k: v for k, v in plan.items() if k != "label_names"}) | {"output": output}
        tracker = mlflow_run.start_run(
            uri, f"preprocess {args.source} --append", output=output, params=params, tags={"ajepa.job": "preprocess"}
        )
        with tracker.recording():
            log_source(tracker, plan)
            totals = write_all(output, plan, new.clips, args.front_end, args.num_workers)
            if args.duplicates == "drop":
                drop_copies(output, args.front_end, args.num_workers, frozenset(dataset.file_names))
            dataset = finish(dataset, plan, manifest, new, tracker)
            found = find_in(dataset)
            record(tracker, dataset, totals, found, [new.counted, *new.remarks, *manifest.remarks])
        if new.known_bad:
            print(f"note: {new.known_bad} known clips were bad and stay so: they were not tried again")
        print_summary(dataset, totals, manifest, found)
        return dataset


def require_dataset(output: str, args: PreprocessArgs) -> ShardDataset:
    """The finished dataset that is to grow.

    Raises:
        UserError: there is none, or it was made with another front end.
    """
    if storage.path_type(storage.join(output, DATASET_JSON)) == "missing":
        what = "an unfinished job" if storage.contents(output) else "nothing"
        end = "finish it with its own command, or choose" if storage.contents(output) else "leave --append out, or name"
        raise UserError(
            f"--append needs a finished dataset, and --output {args.output!r} holds {what}: {end} the --output of one"
        )
    dataset = open_dataset(output)
    changed = differences(dataclasses.asdict(dataset.front_end), dataclasses.asdict(args.front_end))
    if changed:
        raise UserError(
            f"--append: the dataset {args.output!r} was made with another front end ({'; '.join(changed)}): leave "
            "these options out, or choose another --output"
        )
    return dataset


def print_new(new: NewClips) -> None:
    for remark in new.remarks:
        print(f"note: {remark}")
    print(new.counted, flush=True)


def prepare(
    dataset: ShardDataset,
    args: PreprocessArgs,
    manifest: Manifest,
    new: NewClips,
    unfinished: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Make the dataset ready for the new clips; the plan of the job, or None where there is nothing to do.

    Args:
        unfinished: plan that lies there.

    Raises:
        UserError: other clips are being added to it, or files lie in it that are none of its own.
    """
    plan: dict[str, Any] = make_plan(
        args.source, args.input, dataclasses.replace(manifest, clips=new.clips, label_names=new.label_names),
        args.clips_per_shard, args.front_end,
    )  # fmt: skip
    sizes = block_sizes(new.clips, plan["shard_size"])
    plan |= {"duplicates": args.duplicates, "silent": args.silent, "grown_from": dataset.content_hash,
             "known": new.known, "known_bad": new.known_bad, "first_shard": next_shard(dataset),
             "shards": len(sizes)}  # fmt: skip
    if unfinished is not None:
        first = unfinished["first_shard"]
        refuse_changes(
            dataset.path, "a dataset to which other clips are being added, or with other settings", unfinished, plan,
            f"finish that first with its own command, or give it up: delete {APPEND_JSON} and the shards from "
            f"{first:05d} on in {OK} and {BAD}",
        )  # fmt: skip
        return unfinished
    if not new.clips.num_rows:
        return None
    refuse_unlisted(dataset)
    for folder in (PLAN, OK, BAD):
        storage.make_folder(storage.join(dataset.path, folder))
    write_manifest(dataset.path, new.clips, sizes)
    storage.write_text(storage.join(dataset.path, APPEND_JSON), json.dumps(plan))
    return plan


def finish(
    old: ShardDataset, plan: dict[str, Any], manifest: Manifest, new: NewClips, tracker: Tracker
) -> ShardDataset:
    """Put the new dataset.json in place of the old one, with its report."""
    missing = storage.join(old.path, MISSING)
    names = set(storage.read_text(missing).splitlines()) if storage.path_type(missing) == "file" else set()
    names = (names | set(manifest.missing)) - set(new.clips["clip_id"].to_pylist())
    if names:
        storage.write_text(missing, "".join(f"{name}\n" for name in sorted(names)))
    about = {
        "remarks": [new.counted, *new.remarks, *manifest.remarks],
        "missing": len(names),
        "mlflow_run": tracker.run_id,
        "version": ajepa.__version__,
    }
    dataset = finish_append(old, plan, about)
    report(dataset, tracker)
    storage.delete(storage.join(old.path, PLAN))
    return dataset


def tidy_up(dataset: ShardDataset) -> None:
    """Do what is left of a job that was killed after its dataset.json stood."""
    plan = read_plan(dataset.path)
    if plan is not None and is_appended(dataset, plan):
        report(dataset)
        storage.delete(storage.join(dataset.path, PLAN))


def report(dataset: ShardDataset, tracker: Tracker | None = None) -> None:
    """Write the end report of a grown dataset: the remarks are those of its last job."""
    last = dataset.info["appended"][-1]
    save_report(dataset, [*last["remarks"], *empty_classes(dataset)], last["missing"], tracker)
