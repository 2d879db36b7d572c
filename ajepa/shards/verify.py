"""Read a finished dataset back, every byte of it, and name the first thing that is not as it was written."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.append import unfinished_files
from ajepa.shards.dataset import SMALL_COLUMNS, DatasetSummary, Shard, ShardDataset, open_dataset
from ajepa.shards.schema import OK, decode_log_mels


def verify_dataset(path: str) -> Iterator[int]:
    """Check a dataset row by row: layout, digests, finite values, valid frames and sums of each row, then counts,
    clip ids, statistics and content hash of the whole. Memory holds one row group.

    Yields:
        The number of rows checked, after each row group.

    Raises:
        UserError: the first rot, by shard, row and clip.
    """
    dataset = open_dataset(path)
    listed = {shard.name for shard in dataset.shards}
    found = {f"{OK}/{name}" for name, _ in storage.list_files(storage.join(dataset.path, OK))}
    found -= unfinished_files(dataset.path, found - listed)
    if listed != found:
        odd = sorted(listed ^ found)[0]
        raise UserError(f"{dataset.path}: {odd} is {'missing' if odd in listed else 'not listed in dataset.json'}")
    reduction = DatasetSummary(dataset.front_end, list(dataset.label_names))
    for shard in dataset.shards:
        for table in _verify_shard(dataset, shard):
            reduction.add(table)
            yield table.num_rows
    _verify_whole(dataset, reduction)


def _verify_shard(dataset: ShardDataset, shard: Shard) -> Iterator[pa.Table]:
    """The small columns of each row group, after its rows were checked."""
    first = 0
    try:
        with storage.open_input(storage.join(dataset.path, shard.name)) as stream:
            parquet = pq.ParquetFile(stream)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*SMALL_COLUMNS, "log_mel"])
                _verify_rows(dataset, shard.name, first, table)
                first += table.num_rows
                yield table.select(SMALL_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{shard.name}: cannot be read after row {first}: {str(error).splitlines()[0]}") from error
    if first != shard.rows:
        raise UserError(f"{shard.name}: {first} rows, dataset.json says {shard.rows}")


def _verify_rows(dataset: ShardDataset, shard: str, first: int, table: pa.Table) -> None:
    config = dataset.front_end
    for i, row in enumerate(table.to_pylist()):
        where = f"{shard}, row {first + i}, clip {row['clip_id']!r}"
        if hashlib.blake2b(row["log_mel"] or b"", digest_size=16).hexdigest() != row["digest"]:
            raise UserError(f"{where}: log_mel does not match its digest")
        try:
            log_mel = decode_log_mels(pa.array([row["log_mel"]], pa.binary()), config.n_mels, config.clip_frames)[0]
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if not 0 < row["num_frames"] <= config.clip_frames:
            raise UserError(f"{where}: {row['num_frames']} valid frames of {config.clip_frames}")
        valid = log_mel[:, : row["num_frames"]].astype(np.float64)
        if not np.isfinite(valid).all():
            raise UserError(f"{where}: values that are not finite")
        for name, values in (("bin_sum", valid.sum(axis=1)), ("bin_sumsq", np.square(valid).sum(axis=1))):
            stored = row[name] or []
            if len(stored) != len(values) or not np.allclose(values, stored, rtol=1e-9, atol=1e-9):
                raise UserError(f"{where}: {name} is not that of its log_mel")


def _verify_whole(dataset: ShardDataset, reduction: DatasetSummary) -> None:
    ids = reduction.clip_ids()
    if pc.count_distinct(ids).as_py() != len(ids) or len(ids) != dataset.num_clips:
        raise UserError(f"{dataset.path}: {len(ids)} rows for {dataset.num_clips} clips, or a clip id twice")
    statistics = reduction.statistics()
    for name in ("mean", "std"):
        if not np.allclose(getattr(statistics, name), getattr(dataset.statistics, name), rtol=1e-9, atol=1e-9):
            raise UserError(f"{dataset.path}: the {name} in dataset.json is not that of the rows")
    if reduction.content_hash() != dataset.content_hash:
        raise UserError(f"{dataset.path}: the content hash in dataset.json is not that of the rows")
