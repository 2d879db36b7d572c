"""Files that are looked at one by one before a job, by tasks of Ray: an archive of a store takes seconds."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ajepa.audio.archives.each import in_threads
from ajepa.errors import UserError, one_line
from pipelines.rayjobs.cluster import start_ray

FEW = 8  # files, which this process looks at itself
A_TASK = 4  # files
AT_ONCE = 1000  # tasks that are submitted


def on_cluster(function: Callable[[str], Any], files: Sequence[str]) -> Iterator[Any]:
    """Results of the files in their order.

    Raises:
        UserError: what the function raised first.
    """
    if len(files) <= FEW:
        yield from in_threads(function, files)
        return
    import ray

    start_ray(dashboard=False)
    task = ray.remote(num_cpus=1)(_some)
    parts = [list(files[first : first + A_TASK]) for first in range(0, len(files), A_TASK)]
    for first in range(0, len(parts), AT_ONCE):
        for reference in [task.remote(function, part) for part in parts[first : first + AT_ONCE]]:
            found, stopped = ray.get(reference)
            if stopped:
                raise UserError(stopped)
            yield from found


def _some(function: Callable[[str], Any], files: Sequence[str]) -> tuple[list[Any], str]:
    """Results, and what stopped them: an exception would reach the driver as a long traceback of Ray's."""
    try:
        return [function(file) for file in files], ""
    except (UserError, OSError) as error:
        return [], one_line(error)
