"""A Ray Data job over blocks of clips, each written to storage by the task or actor that made it; the driver's side."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.files import find_incomplete
from ajepa.shards.schema import OK
from pipelines.cli.progress import Progress
from pipelines.rayjobs.cluster import start_ray
from pipelines.rayjobs.failures import one_line_failures
from pipelines.rayjobs.ray_internals import shorten_errors, silence_data_progress


def unfinished(
    output: str, paths: Sequence[str], sizes: Sequence[int], clip_ids: Callable[[], pa.ChunkedArray], noun: str
) -> list[int]:
    """Numbers of the blocks that are to be made: those whose ok file is not there yet, and those whose files do not
    hold the clips of the plan.

    Args:
        paths: the ok file of each block.
        sizes: clips of each.
        clip_ids: reads those of all blocks, one after the other; called where a file is found.

    Raises:
        UserError: the store does not answer.
    """
    names = [path.rpartition("/")[2] for path in paths]
    there = storage.contents(storage.join(output, OK))
    found = [i for i, name in enumerate(names) if name in there]
    if not found:
        return list(range(len(paths)))
    ids, starts = clip_ids(), [0, *itertools.accumulate(sizes)]
    try:
        wrong = find_incomplete(output, [(names[i], ids.slice(starts[i], sizes[i]).to_pylist()) for i in found])
    except OSError as error:
        raise UserError(f"cannot look at what is finished: {error}") from error
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        print(f"note: made again, as they do not hold the clips of the plan: {', '.join(wrong[:3])}{more}")
    done = [i for i in found if names[i] not in wrong]
    print(f"resuming: {len(done)} of {len(paths)} {noun} are finished")
    return sorted(set(range(len(paths))) - set(done))


def run_blocks(what: str, todo: Sequence[int], clips: int, function: Any, **options: Any) -> dict[str, Any]:
    """Map `function` (see `data_tasks.make_blocks`) over block numbers, with live progress; counts and seconds of
    this part of the job.

    Args:
        clips: how many the blocks hold.
        options: of ray.data's map_batches.

    Raises:
        UserError: what stopped the job; finished blocks stay.
    """
    counts: Counter[str] = Counter()
    start = time.perf_counter()
    if todo:
        import ray.data
        from ray.data import DataContext

        start_ray(dashboard=False)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        silence_data_progress()
        blocks = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        job = blocks.map_batches(function, batch_size=None, **options)
        shorten_errors()
        with one_line_failures(), Progress(what, clips) as progress:
            for row in job.iter_rows():
                if row["stopped"]:
                    raise UserError(
                        f"stopped: {row['stopped']}. What is finished is kept: fix the cause and run the same command "
                        "again"
                    )
                errors = Counter(json.loads(row["errors"]))
                counts.update(ok=row["ok"], cut=row["cut"], failed=errors.total())
                progress.update(row["ok"] + errors.total(), errors.total())
    return {
        "seconds": time.perf_counter() - start,
        "clips": counts["ok"] + counts["failed"],
        "cut": counts["cut"],
    }
