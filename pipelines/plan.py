"""What makes a preprocess job the same job, and its place at the output: the same goes on, others are refused."""

import dataclasses
import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.config import FrontEndConfig, differences
from ajepa.errors import UserError
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, open_dataset
from ajepa.shards.schema import BAD, OK

PLAN_JSON = f"{PLAN}/plan.json"  # beside it manifest.parquet, a row group a shard
MISSING = "missing.txt"  # clips the source lists and has no audio of, a line each
MAX_CLIPS_PER_SHARD = 500


def make_plan(
    source: str, path: str, manifest: Manifest, clips_per_shard: int | None, front_end: FrontEndConfig
) -> dict[str, Any]:
    """The job's clips, labels, front end and shard size."""
    clips = manifest.clips.num_rows
    shard_size = min(MAX_CLIPS_PER_SHARD, max(32, -(-clips // 8))) if clips_per_shard is None else clips_per_shard
    if shard_size <= 0:
        raise UserError(f"--clips-per-shard must be positive, got {shard_size}")
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, clips, 1 << 16):  # in pieces: the table of millions is not copied whole
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, manifest.clips.schema) as stream:
            stream.write_table(manifest.clips.slice(start, 1 << 16).combine_chunks())
        digest.update(buffer.getvalue())
    return {
        "source": source,
        "input": storage.absolute(path),
        "clips": clips,
        "manifest_hash": digest.hexdigest(),
        "shard_size": shard_size,
        "front_end": dataclasses.asdict(front_end),
        "label_names": manifest.label_names,
    }


def prepare_output(output: str, plan: dict[str, Any], manifest: Manifest, overwrite: bool) -> ShardDataset | None:
    """Make the output ready for the job, or return the finished dataset of the same job found there.

    Raises:
        UserError: the output holds something else.
    """
    names = [n for n, _ in storage.list_files(output)] if storage.kind(output) == "folder" else []
    ours = DATASET_JSON in names or PLAN_JSON in names
    if storage.kind(output) == "file" or (names and not ours and not _only_begun(names)):
        raise UserError(f"--output {output!r} exists and is no shard folder: choose another")
    if ours and overwrite:
        storage.delete(output)
    elif DATASET_JSON in names:
        dataset = open_dataset(output)
        _refuse_other_job(output, dataset.info.get("plan", {}), plan, "a finished dataset")
        return dataset
    elif ours:
        old = json.loads(storage.read_text(storage.join(output, PLAN_JSON)))
        _refuse_other_job(output, old, plan, "an unfinished job")
        return None
    for folder in (PLAN, OK, BAD):
        storage.make_folder(storage.join(output, folder))
    if manifest.missing:
        storage.write_text(storage.join(output, MISSING), "".join(f"{clip}\n" for clip in manifest.missing))
    with storage.atomic_output(storage.join(output, PLAN, "manifest.parquet")) as stream:
        pq.write_table(manifest.clips, stream, row_group_size=plan["shard_size"])
    storage.write_text(storage.join(output, PLAN_JSON), json.dumps(plan))
    return None


def _only_begun(names: list[str]) -> bool:
    """Whether a job was killed, or its disk filled, before its plan stood there: nothing to lose, it starts anew."""
    return all(name == MISSING or name.startswith(f"{PLAN}/") for name in names)


def _refuse_other_job(output: str, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    changed = differences(old, json.loads(json.dumps(new)))
    if changed:
        raise UserError(
            f"--output {output!r} holds {what} made from other input or settings ({'; '.join(changed[:4])}): "
            "choose another --output, or --overwrite to replace it"
        )
