"""Training with Ray Train workers, or inside this process: what pretrain.py and finetune.py start once a run's folder
is ready. Ray is imported only where it is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ajepa import storage
from ajepa.errors import UserError
from ajepa.training.worker import WorkerHooks
from pipelines.cli.arguments import choose_threads
from pipelines.rayjobs.stop_requests import STOP_FILE, StopPoller, graceful


class Callback(Protocol):
    """Receives every report of all workers, as Ray's own UserCallback does."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many train, with what, and how often they are replaced."""

    number: int | tuple[int, int]  # as from parse_workers; 0 trains inside this process
    threads: int | None  # of each, None: this machine's CPUs shared out
    device: str  # "auto", "cpu" or "cuda"
    max_failures: int
    wait_s: float = 0.0  # for a cluster to have the resources
    spread: bool = False  # each on a node of its own

    @property
    def least(self) -> int:
        """How many there are at least."""
        return self.number if isinstance(self.number, int) else self.number[0]


def require_resources(workers: Workers, folders: Mapping[str, str]) -> None:
    """Check, before anything is written, that there is what the workers need; starts Ray where it trains.

    Args:
        folders: that every worker reads or writes, by the options that name them.

    Raises:
        UserError: too few CPUs or GPUs, no GPU where one is asked for, or a folder that a node does not see.
    """
    if workers.number == 0 and (workers.spread or workers.wait_s):
        raise UserError("--spread and --wait-for-resources are for workers of a cluster: --num-workers 0 has none")
    if workers.number != 0:
        from pipelines.rayjobs.nodes import check_nodes
        from pipelines.rayjobs.train_workers import choose_resource

        choose_resource(workers)
        check_nodes(folders)
    elif workers.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: torch finds no GPU here; --device cpu trains on the CPU")


def fit(job: Callable[[WorkerHooks], None], output: str, workers: Workers, callbacks: Sequence[Callback]) -> None:
    """Do a job on every worker, until its end or until asked to stop.

    Args:
        job: given a worker's place, trains; a function of a module or a partial of one. What it reports goes to the
            callbacks.
        output: the run folder.

    Raises:
        UserError: too few resources, or a worker's UserError.
        KeyboardInterrupt: Ctrl-C; Terminated: SIGTERM. A checkpoint is written, unless they came twice.
    """
    storage.delete(storage.join(output, STOP_FILE))  # left by a command that was killed
    if workers.number == 0:
        _run_here(job, output, workers, callbacks)
        return
    from pipelines.rayjobs.train_workers import run_with_ray

    run_with_ray(job, output, workers, callbacks)


def _run_here(job: Callable[[WorkerHooks], None], output: str, workers: Workers, callbacks: Sequence[Callback]) -> None:
    import torch

    torch.set_num_threads(choose_threads(workers.threads, 1))

    def report(metrics: dict[str, Any]) -> None:
        for callback in callbacks:
            callback.after_report(None, [metrics], None)

    chosen = torch.device("cuda" if workers.device != "cpu" and torch.cuda.is_available() else "cpu")
    worker = WorkerHooks(0, 1, chosen, report, StopPoller(output, 0, in_ray=False))
    with graceful(output):
        job(worker)
