"""The plan of a job over clips, kept at its output until it is done: the same job goes on with it."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.append import APPEND_JSON, GIVE_UP
from ajepa.shards.dataset import DATASET_JSON, PLAN, open_dataset
from ajepa.shards.files import read_parquet
from ajepa.shards.schema import BAD, OK
from pipelines.cli.output import OutputType, open_output, refuse_changes

MANIFEST = f"{PLAN}/manifest.parquet"  # the first clips of an unfinished job, a row group a block
BLOCKS_A_FILE = 128  # of a list of clips: a task reads the footer of one file, however many blocks the job has
MISSING = "missing.txt"  # clips the source lists and has no audio of, a line each
MAX_BLOCK = 500  # clips
ADVICE = "choose another --output, or --overwrite to replace it"
EARLIER = {"duplicates": "keep", "silent": "keep"}  # what jobs of earlier versions did, whose plans do not say it


class Finished(Protocol):
    """What a job leaves when it is done."""

    @property
    def info(self) -> dict[str, Any]:
        """The contents of its last file, with the job's "plan"."""


F = TypeVar("F", bound=Finished)


@dataclass(frozen=True)
class ClipJob(Generic[F]):
    """What a job over clips makes at its output."""

    name: str  # "shard folder"
    result: str  # "dataset"
    marker: str  # the file that is written last
    plan: str  # file of an unfinished job, beside its manifest
    open: Callable[[str], F]
    advice: str = ADVICE  # about a finished result of another job

    @property
    def output(self) -> OutputType:
        # A job that was killed, or whose disk filled, before its plan stood there left these: it starts anew.
        return OutputType(self.name, (self.marker, self.plan), (MISSING, f"{PLAN}/manifest*.parquet"))


SHARDS = ClipJob(
    "shard folder", "dataset", DATASET_JSON, f"{PLAN}/plan.json", open_dataset,
    "choose another --output, --append to add the clips that are new, or --overwrite to replace it",
)  # fmt: skip


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


def with_earlier(old: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """A plan as it was found, with the values of options that plans of earlier versions do not name."""
    return {name: value for name, value in EARLIER.items() if name in plan} | old


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
    output: str, job: ClipJob[F], plan: dict[str, Any], manifest: Manifest, sizes: Sequence[int], overwrite: bool
) -> F | None:
    """Make the output ready for the job, or return the finished result of the same job found there.

    The manifest is stored in files of BLOCKS_A_FILE blocks, a row group a block; one without clips is not stored.

    Args:
        sizes: clips of each block, see `block_sizes`.

    Raises:
        UserError: the output holds something else.
    """
    found = open_output(output, job.output, overwrite)
    if found is not None and found.marker == job.marker:
        finished = job.open(output)
        with found.refusing_damage():
            old = dict(finished.info.get("plan", {}))
        what = f"a finished {job.result} made from other input or settings"
        refuse_changes(output, what, with_earlier(old, plan), plan, job.advice)
        return finished
    if found is not None:
        old = with_earlier(found.content, plan)
        refuse_changes(output, "an unfinished job made from other input or settings", old, plan, ADVICE)
        return None
    if overwrite:
        storage.clear(output)
    for folder in (PLAN, OK, BAD):
        storage.make_folder(storage.join(output, folder))
    if manifest.missing:
        storage.write_text(storage.join(output, MISSING), "".join(f"{clip}\n" for clip in manifest.missing))
    write_manifest(output, manifest.clips, sizes)
    storage.write_text(storage.join(output, job.plan), json.dumps(plan))
    return None


def write_manifest(output: str, clips: pa.Table, sizes: Sequence[int]) -> None:
    """Store the clips of a job, a row group a block; see `prepare_output`."""
    starts = [0, *itertools.accumulate(sizes)]
    for first in range(0, len(sizes) if clips.num_rows else 0, BLOCKS_A_FILE):
        with (
            storage.atomic_output(storage.join(output, manifest_file(first))) as stream,
            pq.ParquetWriter(stream, clips.schema) as parquet,
        ):
            for block in range(first, min(first + BLOCKS_A_FILE, len(sizes))):
                parquet.write_table(clips.slice(starts[block], sizes[block]), row_group_size=sizes[block])


def manifest_file(block: int) -> str:
    """The file of an unfinished job's output that holds the clips of a block, as its row group
    `block % BLOCKS_A_FILE`."""
    number = block // BLOCKS_A_FILE
    return f"{PLAN}/manifest-{number:05d}.parquet" if number else MANIFEST


def read_clip_ids(output: str, blocks: int) -> pa.ChunkedArray:
    """The clips of all blocks of an unfinished job; errors as `read_block`."""

    def parse(stream: Any) -> pa.Table:
        return pq.read_table(stream, columns=["clip_id"])

    paths = [storage.join(output, manifest_file(first)) for first in range(0, blocks, BLOCKS_A_FILE)]
    tables = [read_parquet(path, parse, functools.partial(_damaged, output, path)) for path in paths]
    return pa.concat_tables(tables)["clip_id"]


def _damaged(output: str, path: str, what: str) -> UserError:
    if storage.path_type(storage.join(output, APPEND_JSON)) == "file":
        return UserError(f"{path}: {what}: {GIVE_UP}, then run the same command again")
    return UserError(f"{path}: {what}. Start the job again, with --overwrite")


def read_block(output: str, index: int) -> pa.Table:
    """The clips of one block of an unfinished job.

    Raises:
        UserError: the job's list of clips is missing or damaged.
        UnreachableError: the store did not answer.
    """
    path = storage.join(output, manifest_file(index))
    return read_parquet(
        path,
        lambda stream: pq.ParquetFile(stream).read_row_group(index % BLOCKS_A_FILE),
        functools.partial(_damaged, output, path),
    )
