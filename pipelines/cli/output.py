"""What makes a job over clips the same job, and its place at the output: the same goes on, others are refused."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.config import FrontEndConfig, differences
from ajepa.errors import UserError
from ajepa.shards.dataset import DATASET_JSON, PLAN, open_dataset
from ajepa.shards.schema import BAD, OK
from pipelines.cli.arguments import in_ray_job

MANIFEST = f"{PLAN}/manifest.parquet"  # the clips of an unfinished job, a row group a block
MISSING = "missing.txt"  # clips the source lists and has no audio of, a line each
MAX_BLOCK = 500  # clips


class Finished(Protocol):
    """What a job leaves when it is done."""

    @property
    def info(self) -> dict[str, Any]:
        """All that its last file says, with the job's "plan"."""


F = TypeVar("F", bound=Finished)


@dataclass(frozen=True)
class OutputType(Generic[F]):
    """What a job makes at its output."""

    name: str  # "shard folder"
    result: str  # "dataset"
    marker: str  # the file that is written last
    plan: str  # file of an unfinished job, beside its manifest
    open: Callable[[str], F]


SHARDS = OutputType("shard folder", "dataset", DATASET_JSON, f"{PLAN}/plan.json", open_dataset)


def make_plan(
    source: str, path: str, manifest: Manifest, clips_per_shard: int | None, front_end: FrontEndConfig
) -> dict[str, Any]:
    """A preprocess job's clips, labels, front end and shard size."""
    return {
        "source": source,
        "input": storage.absolute(path),
        "clips": manifest.clips.num_rows,
        "manifest_hash": manifest_hash(manifest.clips),
        "shard_size": block_size(manifest.clips.num_rows, clips_per_shard, "--clips-per-shard"),
        "front_end": dataclasses.asdict(front_end),
        "label_names": manifest.label_names,
    }


def manifest_hash(clips: pa.Table) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, clips.num_rows, 1 << 16):  # in pieces: the table of millions is not copied whole
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, clips.schema) as stream:
            stream.write_table(clips.slice(start, 1 << 16).combine_chunks())
        digest.update(buffer.getvalue())
    return digest.hexdigest()


def block_size(clips: int, given: int | None, option: str) -> int:
    """Clips a block: as given, or an eighth of them, between 32 and MAX_BLOCK."""
    size = min(MAX_BLOCK, max(32, -(-clips // 8))) if given is None else given
    if size <= 0:
        raise UserError(f"{option} must be positive, got {size}")
    return size


def prepare_output(
    output: str, kind: OutputType[F], plan: dict[str, Any], manifest: Manifest, size: int, overwrite: bool
) -> F | None:
    """Make the output ready for the job, or return the finished result of the same job found there.

    The manifest is stored in row groups of `size` clips, one a block; one without clips is not stored.

    Raises:
        UserError: the output holds something else.
    """
    names = storage.contents(output)
    ours = kind.marker in names or kind.plan in names
    # A job that was killed, or whose disk filled, before its plan stood there left nothing to lose: it starts anew.
    if storage.path_type(output) == "file" or not (ours or names <= {MISSING, MANIFEST}):
        raise UserError(f"--output {output!r} exists and is no {kind.name}: choose another")
    if ours and overwrite:
        storage.clear(output)
    elif kind.marker in names:
        finished = kind.open(output)
        _refuse_other_job(output, finished.info.get("plan", {}), plan, f"a finished {kind.result}")
        return finished
    elif ours:
        old = json.loads(storage.read_text(storage.join(output, kind.plan)))
        _refuse_other_job(output, old, plan, "an unfinished job")
        return None
    for folder in (PLAN, OK, BAD):
        storage.make_folder(storage.join(output, folder))
    if manifest.missing:
        storage.write_text(storage.join(output, MISSING), "".join(f"{clip}\n" for clip in manifest.missing))
    if manifest.clips.num_rows:
        with storage.atomic_output(storage.join(output, MANIFEST)) as stream:
            pq.write_table(manifest.clips, stream, row_group_size=size)
    storage.write_text(storage.join(output, kind.plan), json.dumps(plan))
    return None


def warn_relative_output(output: str) -> None:
    """A job's working directory is a temporary copy: say where a relative output really goes."""
    if in_ray_job() and not storage.is_uri(output) and not Path(output).is_absolute():
        print(
            f"warning: inside a Ray job the relative --output is {storage.absolute(output)!r}, a folder that goes "
            "with the job: give an absolute path or a URI to keep the result",
            file=sys.stderr,
        )


def read_block(output: str, index: int) -> pa.Table:
    """The clips of one block of an unfinished job."""
    with storage.open_input(storage.join(output, MANIFEST)) as stream:
        return pq.ParquetFile(stream).read_row_group(index)


def _refuse_other_job(output: str, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    changed = differences(old, json.loads(json.dumps(new)))
    if changed:
        raise UserError(
            f"--output {output!r} holds {what} made from other input or settings ({'; '.join(changed[:4])}): "
            "choose another --output, or --overwrite to replace it"
        )
