"""Clips that hold nothing new: copies of others, and silence. The digest of what is stored tells both, so no sound is
decoded again. Where that is asked for they become bad rows."""

import ast
import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.errors import AudioError
from ajepa.config import FrontEndConfig
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.files import cannot_be_read, damaged_part, damaged_shard, read_columns
from ajepa.shards.schema import BAD, BAD_SCHEMA, OK, ROW_GROUP, silence

COLUMNS = ["clip_id", "digest", "split", "fold"]  # all that is read of every ok row
DUPLICATE, SILENT = "duplicate", "silent"  # stages of bad rows
SILENCE = f"{SILENT}: every value of its log-mel is the floor log(epsilon)"


@dataclass(frozen=True)
class Copy:
    """A clip with the same stored log-mel as another one, whose id is smaller."""

    clip_id: str
    split: str
    fold: int
    copy_of: str
    copy_of_split: str
    copy_of_fold: int
    shard: str = ""  # its file; "" where it was dropped

    @property
    def elsewhere(self) -> bool:
        """Whether it lies in another split or fold than the other clip."""
        return (self.split, self.fold) != (self.copy_of_split, self.copy_of_fold)


@dataclass(frozen=True)
class Findings:
    """What is in a dataset twice or more, and its silent clips, those that were dropped among them."""

    copies: list[Copy]
    silent: list[str]
    dropped_silent: list[str]

    @property
    def elsewhere(self) -> int:
        """Copies in another split or fold: what a probe is tested on was in its training part."""
        return sum(copy.elsewhere for copy in self.copies)


@functools.lru_cache(maxsize=8)
def silent_digest(config: FrontEndConfig) -> str:
    """Of the log-mel of digital zero, however long it is: valid frames and padding have the same value."""
    return hashlib.blake2b(silence(config).tobytes(), digest_size=16).hexdigest()


def refuse_silence(row: Mapping[str, Any], config: FrontEndConfig) -> None:
    """Raises AudioError where nothing of an ok row's log-mel rises above log(epsilon), in the float16 that is stored.
    That is digital zero at any rate, and what is so faint that the front end does not see it."""
    if row["digest"] == silent_digest(config):
        raise AudioError(SILENCE)


def find_copies(
    tables: Iterable[tuple[str, pa.Table]], config: FrontEndConfig, first: Collection[str] = ()
) -> tuple[list[Copy], list[str]]:
    """Copies, and ids of silent clips, both in the order of ids. All clips with one log-mel are copies of the one whose
    id is the smallest; silent clips are no copies.

    Args:
        tables: file name and COLUMNS of each shard.
        first: files whose clips are no copies of those in other files, whatever their ids.
    """
    names: list[str] = []
    parts: list[pa.Table] = []
    for name, table in tables:
        parts.append(table.select(COLUMNS).append_column("shard", pa.array([len(names)] * len(table), pa.int32())))
        names.append(name)
    if not parts:
        return [], []
    rows = pa.concat_tables(parts)
    is_silent = pc.equal(rows["digest"], silent_digest(config))
    silent = sorted(rows["clip_id"].filter(is_silent).to_pylist())
    rows = rows.filter(pc.invert(is_silent))
    counted = pc.value_counts(rows["digest"])
    several = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows.filter(pc.is_in(rows["digest"], value_set=several)).to_pylist():
        groups.setdefault(row["digest"], []).append(row)
    copies = []
    for group in groups.values():
        kept, *others = sorted(group, key=lambda row: (names[row["shard"]] not in first, row["clip_id"]))
        copies += [_copy(row, kept, names[row["shard"]]) for row in others]
    return sorted(copies, key=lambda copy: copy.clip_id), silent


def find_in(dataset: ShardDataset) -> Findings:
    """Copies and silent clips of a finished dataset, and those that its job dropped.

    Raises:
        UserError: a shard is missing or damaged.
        UnreachableError: the store did not answer.
    """
    tables = read_columns(dataset.path, [shard.name for shard in dataset.shards], COLUMNS, damaged_shard)
    copies, silent = find_copies(zip(dataset.file_names, tables, strict=True), dataset.front_end)
    dropped, dropped_silent = [], []
    for table in dataset.bad_tables(["clip_id", "split", "fold", "error"]):
        for row in table.to_pylist():
            if row["error"].startswith(f"{DUPLICATE}: "):
                dropped.append(row)
            elif row["error"].startswith(f"{SILENT}: "):
                dropped_silent.append(row["clip_id"])
    if dropped:
        ids = [dropped_for(row["error"]) for row in dropped]
        known = dataset.read_columns(["clip_id", "split", "fold"])
        kept = known.filter(pc.is_in(known["clip_id"], value_set=pa.array(ids, pa.string()))).to_pylist()
        by_id = {row["clip_id"]: row for row in kept}
        copies += [_copy(row, by_id[id_], "") for row, id_ in zip(dropped, ids, strict=True) if id_ in by_id]
    return Findings(sorted(copies, key=lambda copy: copy.clip_id), silent, sorted(dropped_silent))


def _copy(row: Mapping[str, Any], kept: Mapping[str, Any], shard: str) -> Copy:
    return Copy(row["clip_id"], row["split"], row["fold"], kept["clip_id"], kept["split"], kept["fold"], shard)


def reason(copy_of: str) -> str:
    """The error of a bad row that was a copy. The id is quoted: reports leave quoted text out of a failure's kind."""
    return f"{DUPLICATE}: of {copy_of!r}"


def dropped_for(error: str) -> str:
    """The clip id in a `reason`."""
    return str(ast.literal_eval(error.removeprefix(f"{DUPLICATE}: of ")))


def move_to_bad(output: str, name: str, reasons: Mapping[str, str]) -> None:
    """Write a shard again without these clips, which become bad rows. The bad file appears first and the ok file last:
    in between clips are in both, and a job that finds them there makes the shard again. Memory holds one row group.

    Args:
        name: of the shard's files.
        reasons: error by clip id.

    Raises:
        UserError: a file of the shard is damaged.
        OSError: it cannot be written.
    """
    ok_path, bad_path = storage.join(output, OK, name), storage.join(output, BAD, name)
    try:
        _move(ok_path, bad_path, reasons)
    except pa.ArrowException as error:
        raise damaged_part(output, f"{OK}/{name}", cannot_be_read(error)) from error


def _move(ok_path: str, bad_path: str, reasons: Mapping[str, str]) -> None:
    chosen = pa.array(list(reasons), pa.string())
    with storage.open_input(ok_path) as stream:
        parquet = pq.ParquetFile(stream)
        names = [name for name in BAD_SCHEMA.names if name != "error"]
        rows = parquet.read(columns=names).select(names)
        moved = rows.filter(pc.is_in(rows["clip_id"], value_set=chosen))
        if not moved.num_rows:
            return
        errors = pa.array([reasons[clip_id] for clip_id in moved["clip_id"].to_pylist()], pa.string())
        bad = [moved.append_column("error", errors).select(BAD_SCHEMA.names).cast(BAD_SCHEMA)]
        if storage.path_type(bad_path) == "file":
            with storage.open_input(bad_path) as bad_stream:
                old = pq.ParquetFile(bad_stream).read()
            bad.insert(0, old.filter(pc.invert(pc.is_in(old["clip_id"], value_set=chosen))))
        with storage.atomic_output(bad_path) as target:
            pq.write_table(pa.concat_tables(bad), target)
        schema = parquet.schema_arrow
        with (
            storage.atomic_output(ok_path) as target,
            pq.ParquetWriter(target, schema, compression="none", use_dictionary=False) as writer,
        ):
            for table in _row_groups(_without(parquet, chosen), schema):
                writer.write_table(table)


def _without(parquet: pq.ParquetFile, chosen: pa.Array) -> Iterator[pa.Table]:
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        yield table.filter(pc.invert(pc.is_in(table["clip_id"], value_set=chosen)))


def _row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows by ROW_GROUP, on which readers rely; an empty table where there are none."""
    held, written = schema.empty_table(), False
    for table in tables:
        held = pa.concat_tables([held, table])
        while len(held) >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP).combine_chunks()
            held, written = held.slice(ROW_GROUP), True
    if len(held) or not written:
        yield held.combine_chunks()
