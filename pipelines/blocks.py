"""A Ray Data job over blocks of clips, each written to storage by the task or actor that made it; the driver's side."""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.schema import OK
from pipelines.progress import Progress
from pipelines.ray_cluster import start_ray


def unfinished(output: str, paths: Sequence[str], noun: str) -> list[int]:
    """Numbers of the blocks whose ok file is not there yet."""
    done = {name for name, _ in storage.list_files(storage.join(output, OK))}
    todo = [i for i, path in enumerate(paths) if path.rpartition("/")[2] not in done]
    if len(todo) < len(paths):
        print(f"resuming: {len(paths) - len(todo)} of {len(paths)} {noun} are finished")
    return todo


def run_blocks(what: str, todo: Sequence[int], clips: int, function: Any, **options: Any) -> dict[str, Any]:
    """Map `function` (see `block_tasks.make_blocks`) over block numbers, with live progress; figures of this part of
    the job.

    Args:
        clips: how many the blocks hold.
        options: of ray.data's map_batches.

    Raises:
        UserError: what stopped the job; finished blocks stay.
    """
    figures: Counter[str] = Counter()
    start = time.perf_counter()
    if todo:
        import ray.data
        from ray.data import DataContext

        start_ray(dashboard=False)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("progress", "execution.streaming_executor"):  # which tell that there is no bar of theirs
            logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
        blocks = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        job = blocks.map_batches(function, batch_size=None, **options)
        with Progress(what, clips) as progress:
            for row in job.iter_rows():
                if row["stopped"]:
                    raise UserError(
                        f"stopped: {row['stopped']}. What is finished is kept: mend it and run the same command again"
                    )
                errors = Counter(json.loads(row["errors"]))
                figures.update(ok=row["ok"], cut=row["cut"], failed=errors.total())
                progress.update(row["ok"] + errors.total(), errors.total())
    return {
        "seconds": time.perf_counter() - start,
        "clips": figures["ok"] + figures["failed"],
        "cut": figures["cut"],
    }
