"""A finished dataset: dataset.json over the shards. Written last; a folder without it is an unfinished job."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.config import FrontEndConfig, from_dict
from ajepa.errors import UserError
from ajepa.shards.schema import BAD, CONTRACT_VERSION, OK, decode_log_mels
from ajepa.shards.statistics import Statistics, reduce_statistics

DATASET_JSON = "dataset.json"
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

    def read_columns(self, columns: list[str]) -> pa.Table:
        """Columns of all ok rows, in storage order."""
        tables = []
        for shard in self.shards:
            with storage.open_input(storage.join(self.path, shard.name)) as stream:
                tables.append(pq.read_table(stream, columns=columns))
        return pa.concat_tables(tables)

    def iter_log_mels(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(log_mels [rows, n_mels, clip_frames] float16, num_frames [rows]) by row group, in storage order."""
        for shard in self.shards:
            with storage.open_input(storage.join(self.path, shard.name)) as stream:
                parquet = pq.ParquetFile(stream)
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=["log_mel", "num_frames"])
                    log_mels = decode_log_mels(table["log_mel"], self.front_end.n_mels, self.front_end.clip_frames)
                    yield log_mels, table["num_frames"].to_numpy()


def open_dataset(path: str) -> ShardDataset:
    """Read dataset.json of a finished dataset.

    Raises:
        UserError: nothing there, an unfinished job, or a dataset of another version.
    """
    storage.require_folder(path, "the shard folder")
    where = storage.join(storage.absolute(path), DATASET_JSON)
    if storage.kind(where) == "missing":
        raise UserError(
            f"{path!r} has no {DATASET_JSON}: it is an unfinished preprocess job or no shard folder. "
            "Run the same preprocess command again to finish it"
        )
    try:
        info = json.loads(storage.read_text(where))
        version = info["contract_version"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{where!r} is damaged ({error}); run preprocess into a new folder") from error
    if version != CONTRACT_VERSION:
        raise UserError(f"{where!r} follows shard contract {version}, this version reads {CONTRACT_VERSION}")
    try:
        return _from_info(storage.absolute(path), info)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where!r} is damaged ({error!r}); run preprocess into a new folder") from error


def _from_info(path: str, info: dict[str, Any]) -> ShardDataset:
    statistics = info["statistics"]
    return ShardDataset(
        path=path,
        front_end=from_dict(FrontEndConfig, info["front_end"]),
        statistics=Statistics(np.array(statistics["mean"]), np.array(statistics["std"]), statistics["frames"]),
        label_names=tuple(info["label_names"]),
        shards=tuple(Shard(s["name"], s["rows"]) for s in info["shards"]),
        num_clips=info["counts"]["ok"],
        num_failed=info["counts"]["bad"],
        hours=info["counts"]["hours"],
        content_hash=info["content_hash"],
        info=info,
    )


def finish_dataset(
    output: str, front_end: FrontEndConfig, label_names: list[str], expected: int, extra: dict[str, Any]
) -> ShardDataset:
    """Check that every clip is there exactly once, reduce the statistics and write dataset.json.

    Reads only the small columns. `extra` is stored as it is.

    Raises:
        RuntimeError: the shards do not hold the expected clips.
        UserError: not one clip could be read.
    """
    names = sorted(n for n, _ in storage.list_files(storage.join(output, OK)) if n.endswith(".parquet"))
    tables, shards = [], []
    for name in names:
        with storage.open_input(storage.join(output, OK, name)) as stream:
            tables.append(pq.read_table(stream, columns=SMALL_COLUMNS))
        shards.append({"name": f"{OK}/{name}", "rows": tables[-1].num_rows})
    bad, reasons = _read_bad(output)
    ids = [clip_id for table in tables for clip_id in table["clip_id"].to_pylist()]
    if len(ids) + len(bad) != expected or len(set(ids) | set(bad)) != expected:
        raise RuntimeError(
            f"{output}: {len(ids)} ok and {len(bad)} bad rows, {len(set(ids) | set(bad))} distinct ids, "
            f"for {expected} clips: delete the folder and run preprocess again"
        )
    if not ids:
        raise UserError(f"not one of {expected} clips could be read: {dict(reasons)}; see {output}/{BAD}")
    rows = pa.concat_tables(tables)
    statistics = statistics_of(rows)
    info = {
        "contract_version": CONTRACT_VERSION,
        "front_end": dataclasses.asdict(front_end),
        "statistics": {
            "mean": statistics.mean.tolist(),
            "std": statistics.std.tolist(),
            "frames": statistics.frames,
        },
        "counts": {
            "ok": len(ids),
            "bad": len(bad),
            "bad_by_stage": dict(reasons),
            "hours": statistics.frames / front_end.frame_rate / 3600,
        },
        "label_names": label_names,
        "content_hash": content_hash(rows, front_end, label_names),
        "shards": shards,
        **extra,
    }
    storage.write_text(storage.join(output, DATASET_JSON), json.dumps(info, indent=1))
    return open_dataset(output)


def _read_bad(output: str) -> tuple[list[str], Counter[str]]:
    """Ids and failure counts by stage of the rejected clips."""
    ids: list[str] = []
    reasons: Counter[str] = Counter()
    folder = storage.join(output, BAD)
    for name, _ in storage.list_files(folder) if storage.kind(folder) == "folder" else []:
        if name.endswith(".parquet"):
            with storage.open_input(storage.join(folder, name)) as stream:
                table = pq.read_table(stream, columns=["clip_id", "error"])
            ids += table["clip_id"].to_pylist()
            reasons.update(error.partition(":")[0] for error in table["error"].to_pylist())
    return ids, reasons


def statistics_of(rows: pa.Table) -> Statistics:
    """The statistics of ok rows, from their per-row sums."""
    sums, squares = (np.stack(rows[name].to_numpy()) for name in ("bin_sum", "bin_sumsq"))
    return reduce_statistics(rows["clip_id"].to_pylist(), rows["num_frames"].to_numpy(), sums, squares)


def content_hash(rows: pa.Table, front_end: FrontEndConfig, label_names: list[str]) -> str:
    """Hash of front end, labels and every ok row's identity and content, in order of clip id."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([dataclasses.asdict(front_end), label_names], sort_keys=True).encode())
    columns = ["clip_id", "digest", "labels", "split", "fold"]
    for row in sorted(zip(*(rows[c].to_pylist() for c in columns), strict=True)):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
