"""Work that needs a GPU, done on a node of the cluster that has one: a submitted job starts on the head, which often
has none."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from ajepa import storage
from ajepa.errors import UserError
from pipelines.rayjobs.cluster import cluster_resource, largest_node, start_ray
from pipelines.rayjobs.failures import one_line_failures
from pipelines.rayjobs.nodes import check_nodes

T = TypeVar("T")
END_SECONDS = 30.0  # for the work to end its MLflow run after Ctrl-C


def run_on_gpu_node(work: Callable[[], T], output: str, threads: int | None, folders: Mapping[str, str]) -> T:
    """Call a function as a task that holds one GPU, and so many CPUs. What it prints is printed here.

    Args:
        work: a function of a module, or a partial of one.
        output: where it writes.
        threads: None: one CPU is asked for.
        folders: that it reads, by the options that name them.

    Raises:
        UserError: no GPU, too few CPUs, a folder that not all nodes see, or one of `work`.
        FailedError: the task failed otherwise.
    """
    import ray

    start_ray(dashboard=False)
    cpus = threads or 1
    if not cluster_resource("GPU"):
        raise UserError("--device cuda: Ray finds no GPU")
    if cpus > (most := largest_node("CPU")):
        raise UserError(f"--threads {cpus}: no node of the cluster has more than {most:g} CPUs")
    if storage.is_local(output):
        raise UserError(f"--device cuda works on another node of the cluster: --output {output!r} has to be a URI")
    check_nodes(folders)
    task = ray.remote(num_gpus=1, num_cpus=cpus, max_retries=0)(_call).remote(work)
    try:
        with one_line_failures():
            return ray.get(task)
    except KeyboardInterrupt:
        ray.cancel(task)
        ray.wait([task], timeout=END_SECONDS)
        raise


def _call(work: Callable[[], T]) -> T:
    """Ray takes no partial for a task."""
    return work()
