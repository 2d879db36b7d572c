"""Copies of other clips become bad rows, once all shards of a preprocess job are there: their shards are written again,
each by a task."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import PLAN
from ajepa.shards.duplicates import COLUMNS, find_copies, move_to_bad, reason
from ajepa.shards.files import read_parquet, read_shards
from ajepa.shards.schema import OK
from ajepa.shards.writer import ShardResult, shard_number
from pipelines.rayjobs.data_job import run_blocks

COPIES = f"{PLAN}/copies.parquet"  # clips to be dropped: shard number, clip id and the clip it is a copy of


def drop_copies(output: str, front_end: FrontEndConfig, num_workers: int | None, finished: Collection[str] = ()) -> int:
    """Move all copies to the bad rows, with live progress; their number. Stopped at any time and started again, it ends
    the same: the clip with the smallest id stays.

    Args:
        finished: file names of shards that are not changed; their clips stay, whatever their ids.

    Raises:
        UserError: what stopped the job; shards that were written stay.
    """
    found, _ = find_copies(read_shards(output, OK, COLUMNS, finished), front_end, finished)
    copies = [copy for copy in found if copy.shard not in finished]
    if not copies:
        return 0
    from ray.data import TaskPoolStrategy

    rows = sorted((shard_number(copy.shard), copy.clip_id, copy.copy_of, copy.shard) for copy in copies)
    columns = dict(zip(("number", "clip_id", "copy_of", "shard"), zip(*rows, strict=True), strict=True))
    with storage.atomic_output(storage.join(output, COPIES)) as stream:
        pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), stream, row_group_size=4096)
    todo = sorted(set(columns["number"]))
    run_blocks(
        "drop copies",
        todo,
        len(copies),
        drop_from_shards,
        fn_kwargs={"output": output},
        compute=TaskPoolStrategy(size=num_workers and min(num_workers, len(todo))),
        num_cpus=1,
    )
    return len(copies)


def drop_from_shards(batch: dict[str, np.ndarray], output: str) -> dict[str, Any]:
    """The map task of `drop_copies`."""
    from pipelines.rayjobs.data_tasks import make_blocks  # torch

    def make(number: int) -> ShardResult:
        path = storage.join(output, COPIES)
        rows = read_parquet(
            path,
            lambda stream: pq.read_table(stream, filters=[("number", "=", number)], use_threads=False),
            lambda what: UserError(f"{path}: {what}. Start the job again"),
        ).to_pylist()
        move_to_bad(output, rows[0]["shard"], {row["clip_id"]: reason(row["copy_of"]) for row in rows})
        return ShardResult(number, ok=len(rows))

    return make_blocks(batch, output, make)
