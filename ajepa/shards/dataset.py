"""A finished dataset: dataset.json over the shards. Written last; a folder without it is an unfinished job."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.statistics import RunningSums, Statistics
from ajepa.config import FrontEndConfig
from ajepa.config_json import from_dict
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.shards.files import cannot_be_read, damaged_shard, read_columns, read_shards
from ajepa.shards.schema import BAD, CONTRACT_VERSION, OK, decode_log_mels

DATASET_JSON = "dataset.json"
PLAN = "_plan"  # folder of an unfinished job or merge: what it is to become
AGAIN = "restore it, or run preprocess into a new folder"
SMALL_COLUMNS = ["clip_id", "num_frames", "bin_sum", "bin_sumsq", "digest", "labels", "split", "fold"]


@dataclass(frozen=True)
class Shard:
    """One Parquet file of ok rows: path relative to the dataset, rows."""

    name: str
    rows: int


@dataclass(frozen=True)
class ShardDataset:
    """What dataset.json says. Open it with `open_dataset`."""

    path: str
    front_end: FrontEndConfig
    statistics: Statistics
    label_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    num_clips: int  # status=ok
    num_failed: int  # status=bad
    hours: float  # of valid frames
    content_hash: str
    info: dict[str, Any]  # the whole file

    def require_front_end(self, wanted: FrontEndConfig) -> None:
        """Refuse an encoder that was trained on log-mels made in another way (a clip's length may differ).

        Raises:
            UserError: a setting differs, by name.
        """
        for field in dataclasses.fields(FrontEndConfig):
            ours, theirs = getattr(self.front_end, field.name), getattr(wanted, field.name)
            if ours != theirs and field.name != "clip_frames":
                raise UserError(
                    f"the encoder was trained with {field.name}={theirs}, the shards in {self.path!r} have {ours}: "
                    "preprocess them alike"
                )

    @cached_property
    def clips_hash(self) -> str:
        """Hash of front end, labels and every ok row's identity and length, the same wherever the shards were made.
        The content hash is not: the last bits of log-mels depend on the kind of CPU."""
        columns = ["clip_id", "num_frames", "labels", "split", "fold"]
        total = sum(rows_hash(table, columns) for table in self._tables(columns))
        return combined_hash(about_rows(self.front_end, self.label_names), total)

    def read_columns(self, columns: list[str]) -> pa.Table:
        """Columns of all ok rows, in storage order.

        Raises:
            UserError: a shard is missing or damaged.
            UnreachableError: the store did not answer.
        """
        return pa.concat_tables(self._tables(columns))

    def bad_tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of the bad rows, by shard. Those of a job that adds to the dataset and is not finished are left out.

        Raises:
            UserError: a file is damaged.
            UnreachableError: the store did not answer.
        """
        there = storage.contents(storage.join(self.path, BAD))
        names = [name for name in self.file_names if name in there]
        yield from read_columns(self.path, [f"{BAD}/{name}" for name in names], columns, damaged_shard)

    @property
    def file_names(self) -> list[str]:
        """Of the shards, without their folder: the bad rows beside them have the same."""
        return [shard.name.rpartition("/")[2] for shard in self.shards]

    def check_shards(self) -> None:
        """Read a small column of every shard, to refuse a dataset of which one is missing or cut before work begins.
        Log-mels are checked when they are read.

        Raises:
            UserError: a shard is missing or damaged.
            UnreachableError: the store did not answer.
        """
        for _ in self._tables(["num_frames"]):
            pass

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """The same, shard by shard."""
        tables = read_columns(self.path, [shard.name for shard in self.shards], columns, damaged_shard)
        for shard, table in zip(self.shards, tables, strict=True):
            if len(table) != shard.rows:
                raise damaged_shard(self.path, shard.name, f"{len(table)} rows, dataset.json says {shard.rows}")
            yield table

    def iter_log_mels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(log_mels [rows, n_mels, clip_frames] float16, num_frames [rows]) by row group, in storage order.

        Raises:
            UserError: a shard is missing or damaged.
            OSError: a store does not answer.
        """
        for shard in self.shards:
            try:
                with storage.open_input(storage.join(self.path, shard.name)) as stream:
                    parquet = pq.ParquetFile(stream)
                    for group in range(parquet.num_row_groups):
                        table = parquet.read_row_group(group, columns=["log_mel", "num_frames"])
                        log_mels = decode_log_mels(table["log_mel"], self.front_end.n_mels, self.front_end.clip_frames)
                        yield log_mels, table["num_frames"].to_numpy()
            except FileNotFoundError as error:
                raise damaged_shard(self.path, shard.name, "is missing") from error
            except (pa.ArrowException, KeyError, ValueError, OSError) as error:
                if isinstance(error, OSError) and not storage.is_local(self.path):  # may be the connection
                    raise
                raise damaged_shard(self.path, shard.name, cannot_be_read(error)) from error


def require_finished(path: str, marker: str, folder: str, command: str) -> str:
    """Where the file lies that a job over clips writes last.

    Args:
        marker: its name.
        folder: what the job makes, "shard folder".
        command: that makes it.

    Raises:
        UserError: no folder there, or an unfinished job.
    """
    storage.require_folder(path, f"the {folder}")
    where = storage.join(storage.absolute(path), marker)
    if storage.path_type(where) == "missing":
        raise UserError(
            f"{path!r} has no {marker}: it is no {folder}, or one that is not finished. {command} makes one "
            f"from audio; run the same {command} command again to finish it"
        )
    return where


def open_dataset(path: str) -> ShardDataset:
    """Read dataset.json of a finished dataset.

    Raises:
        UserError: nothing there, an unfinished job, or a dataset of another version.
    """
    where = require_finished(path, DATASET_JSON, "shard folder", "preprocess")
    info = read_document(where, AGAIN)
    with refusing_damage(where, AGAIN):
        if info["contract_version"] != CONTRACT_VERSION:
            version = info["contract_version"]
            raise UserError(f"{where!r} follows shard contract {version}, this version reads {CONTRACT_VERSION}")
        return _from_info(storage.absolute(path), info)


def _from_info(path: str, info: dict[str, Any]) -> ShardDataset:
    require_types(info, front_end=dict, statistics=dict, counts=dict, shards=list, label_names=list, content_hash=str)
    require_types(info["counts"], ok=int, bad=int, hours=(int, float))
    return ShardDataset(
        path=path,
        front_end=from_dict(FrontEndConfig, info["front_end"]),
        statistics=Statistics.from_dict(info["statistics"]),
        label_names=tuple(info["label_names"]),
        shards=tuple(Shard(s["name"], s["rows"]) for s in info["shards"]),
        num_clips=info["counts"]["ok"],
        num_failed=info["counts"]["bad"],
        hours=info["counts"]["hours"],
        content_hash=info["content_hash"],
        info=info,
    )


class DatasetSummary:
    """The summary of a dataset, from its ok rows shard by shard in any order; memory holds the clip ids."""

    def __init__(self, front_end: FrontEndConfig, label_names: list[str]) -> None:
        self._about = about_rows(front_end, label_names)
        self._n_mels = front_end.n_mels
        self._totals = RunningSums(front_end.n_mels)
        self._ids: list[pa.Array] = []
        self._rows_hash = 0

    def add(self, rows: pa.Table) -> None:
        """Add ok rows with the columns SMALL_COLUMNS.

        Raises:
            ValueError: a row's sums do not have one value a mel bin.
        """
        n = rows.num_rows
        sums = [pc.list_flatten(rows[name]).to_numpy().reshape(n, self._n_mels) for name in ("bin_sum", "bin_sumsq")]
        self._totals.add(rows["num_frames"].to_numpy(), *sums)
        self._ids += rows["clip_id"].chunks
        self._rows_hash += rows_hash(rows, ["clip_id", "digest", "labels", "split", "fold"])

    def clip_ids(self) -> pa.ChunkedArray:
        return pa.chunked_array(self._ids, pa.string())

    def statistics(self) -> Statistics:
        return self._totals.statistics()

    def content_hash(self) -> str:
        """Hash of front end, labels and every ok row's identity and content. Row hashes are added, so that neither
        the order of the rows nor their shards matter."""
        return combined_hash(self._about, self._rows_hash)


def about_rows(front_end: FrontEndConfig, label_names: Sequence[str]) -> str:
    return json.dumps([dataclasses.asdict(front_end), list(label_names)], sort_keys=True)


def rows_hash(rows: pa.Table, columns: Sequence[str]) -> int:
    """Sum of a hash of each row."""
    values = zip(*(rows[name].to_pylist() for name in columns), strict=True)
    digests = (hashlib.blake2b(json.dumps(row).encode(), digest_size=32).digest() for row in values)
    return sum(int.from_bytes(digest, "little") for digest in digests)


def combined_hash(about: str, rows: int) -> str:
    """Of sums of `rows_hash`."""
    return hashlib.blake2b(about.encode() + (rows % (1 << 256)).to_bytes(32, "little"), digest_size=16).hexdigest()


def finish_dataset(
    output: str,
    front_end: FrontEndConfig,
    label_names: list[str],
    expected: int,
    extra: dict[str, Any],
    finished: Collection[str] = (),
) -> ShardDataset:
    """Check that every clip is there exactly once, reduce the statistics and write dataset.json.

    Reads only the small columns, a few shards at a time. `extra` is stored beside what is found; `finished` are the
    file names of shards that an earlier job made.

    Raises:
        UserError: the shards do not hold the expected clips, one is damaged, or not one clip could be read.
    """
    storage.sweep(output)
    reduction, shards = DatasetSummary(front_end, label_names), []
    for name, table in read_shards(output, OK, SMALL_COLUMNS, finished):
        reduction.add(table)
        shards.append({"name": f"{OK}/{name}", "rows": table.num_rows})
    ids = reduction.clip_ids()
    reasons = check_complete(output, ids, expected, finished)
    statistics = reduction.statistics()
    info: dict[str, Any] = {
        "contract_version": CONTRACT_VERSION,
        "front_end": dataclasses.asdict(front_end),
        "statistics": statistics.to_dict(),
        "counts": {
            "ok": len(ids),
            "bad": reasons.total(),
            "bad_by_stage": dict(reasons),
            "hours": statistics.frames / front_end.frame_rate / 3600,
        },
        "label_names": label_names,
        "content_hash": reduction.content_hash(),
        "shards": shards,
    }
    info |= {key: value for key, value in extra.items() if key not in info}
    storage.write_text(storage.join(output, DATASET_JSON), json.dumps(info, indent=1))
    return open_dataset(output)


def check_complete(output: str, ok_ids: pa.ChunkedArray, expected: int, finished: Collection[str] = ()) -> Counter[str]:
    """Check that every clip is there exactly once, ok or bad; the number of bad ones by stage. `finished`: as for
    `finish_dataset`.

    Raises:
        UserError: the files do not hold the expected clips, as when others were put there or deleted while the job
            ran; one is damaged; or not one clip could be read.
    """
    bad, reasons = [], Counter[str]()
    for _, table in read_shards(output, BAD, ["clip_id", "error"], finished):
        bad += table["clip_id"].chunks
        reasons.update(error.partition(":")[0] for error in table["error"].to_pylist())
    distinct = pc.count_distinct(pa.chunked_array([*ok_ids.chunks, *bad], pa.string())).as_py()
    if len(ok_ids) + reasons.total() != expected or distinct != expected:
        what = "undo what was changed there while the job ran" if finished else "delete the folder"
        raise UserError(
            f"{output}: {len(ok_ids)} ok and {reasons.total()} bad rows, {distinct} distinct ids, "
            f"for {expected} clips: {what} and run the same command again"
        )
    if not len(ok_ids):
        raise UserError(f"not one of {expected} clips could be read: {dict(reasons)}; see {output}/{BAD}")
    return reasons
