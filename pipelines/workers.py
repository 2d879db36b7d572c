"""Training with Ray Train workers, or inside this process: what pretrain.py and finetune.py start once a run's folder
is ready."""

import contextlib
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.train
import torch
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal import util as error_internals
from ray.train.v2._internal.execution import callback_manager as callback_internals
from ray.train.v2._internal.execution import context as report_internals
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import controller as controller_internals

from ajepa import storage
from ajepa.errors import UserError
from ajepa.training.checkpoint import said
from ajepa.training.context import WorkerContext
from ajepa.training.loop import Preempted
from ajepa.training.watch import NonFiniteLoss
from pipelines.common import cluster_cpus, start_ray
from pipelines.stopping import STOP_FILE, SigtermWatcher, StopRequests, graceful, in_thread

# Seconds between the controller's looks at its workers, 2 if it were for Ray. A worker's report waits for the next
# look, and so does SIGTERM: its handler runs when the main thread next does something.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
VAGUE_SECONDS = 2.0  # a worker that cannot name the clips lets the one that can speak first


def parse_workers(value: int | str) -> int | tuple[int, int]:
    """ "4" -> 4 workers; "4:8" -> as many as there are resources for, between 4 and 8.

    Raises:
        UserError: neither a number nor LOW:HIGH.
    """
    try:
        numbers = [int(part) for part in str(value).split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] >= 0:
        return numbers[0]
    if len(numbers) == 2 and 1 <= numbers[0] <= numbers[1]:
        return numbers[0], numbers[1]
    raise UserError(f"--num-workers {value!r}: give a number (0 trains inside this process) or a range like 4:8")


def choose_threads(threads: int | None, workers_here: int) -> int:
    """Threads of a worker: as told, or this machine's CPUs shared out. Too many slow a step down several times over."""
    return threads or max(1, len(os.sched_getaffinity(0)) // max(1, workers_here))


def train_worker(settings: dict[str, Any]) -> None:
    """Entry of one Ray Train worker."""
    context = ray.train.get_context()
    rank, output = context.get_world_rank(), settings["output"]
    torch.set_num_threads(choose_threads(settings["threads"], context.get_local_world_size()))
    # Ray names this logger by its file, so LoggingConfig misses it; it would print every report of every rank.
    logging.getLogger(report_internals.__file__).setLevel(logging.WARNING)
    logging.getLogger(error_internals.__name__).addFilter(SaidElsewhere())
    said.update(settings["said"])  # by the command already
    worker = WorkerContext(
        rank,
        context.get_world_size(),
        ray.train.torch.get_device(),
        ray.train.report,
        StopRequests(output, rank, in_ray=True),
    )
    try:
        settings["job"](worker)
    except NonFiniteLoss as error:
        if not error.rows:
            time.sleep(VAGUE_SECONDS)
        raise


class Unmendable(WorkerGroupCallback):
    """Ends the run at a worker's UserError, which Ray's restarts would only meet again."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        for module in (controller_internals, callback_internals):
            logging.getLogger(module.__name__).addFilter(SaidElsewhere())

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        mistakes = [e for e in worker_group_status.errors.values() if isinstance(e, UserError)]
        if mistakes:
            raise ControllerError(max(mistakes, key=lambda error: bool(getattr(error, "rows", ()))))


class SaidElsewhere(logging.Filter):
    """Keeps what Ray prints of a worker's error to what the command will not say itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, Preempted):
            record.msg = str(error)
        return not isinstance(error, UserError)


def fit(
    job: Callable[[WorkerContext], None],
    output: str,
    *,
    num_workers: int | tuple[int, int],
    threads: int | None,
    device: str,
    max_failures: int,
    callbacks: Sequence[UserCallback],
) -> None:
    """Do a job on every worker, until its end or until asked to stop.

    Args:
        job: given a worker's place, trains; a function of a module or a partial of one. What it reports goes to the
            callbacks.
        output: the run folder.

    Raises:
        UserError: too few resources, or what a worker said is the user's to mend.
        KeyboardInterrupt: Ctrl-C; Terminated: SIGTERM. A checkpoint is written, unless they came twice.
    """
    storage.delete(storage.join(output, STOP_FILE))  # left by a command that was killed
    if num_workers == 0:
        _fit_here(job, output, threads, device, callbacks)
        return
    start_ray()
    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = device == "cuda" or (device == "auto" and gpus > 0)
    resource, have = ("GPU", gpus) if use_gpu else ("CPU", cluster_cpus())
    least = num_workers if isinstance(num_workers, int) else num_workers[0]
    if least > have:
        raise UserError(f"--num-workers {least} needs as many {resource}s; the cluster has {have}")
    if not isinstance(num_workers, int):
        # After a loss Ray first tries as many workers again, on what it still takes for the cluster, for 60 s if it
        # were for Ray; only then fewer.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    settings = {"job": job, "output": output, "threads": threads, "said": said}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        # Checkpoints are the run folder's own, written by rank 0 and found again by every attempt. Ray only hears of
        # figures; its state gets a fresh name each time, for a name that finished once would silently do nothing.
        run_config=RunConfig(
            storage_path=storage.join(output, "ray"),
            name=uuid.uuid4().hex[:12],
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[*callbacks, SigtermWatcher(), Unmendable()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with _one_line():
        if threading.current_thread() is not threading.main_thread():  # a trial of Ray Tune
            trainer.fit()
            return
        with graceful(output):
            in_thread(trainer.fit)


def _fit_here(
    job: Callable[[WorkerContext], None],
    output: str,
    threads: int | None,
    device: str,
    callbacks: Sequence[UserCallback],
) -> None:
    torch.set_num_threads(choose_threads(threads, 1))

    def report(metrics: dict[str, Any]) -> None:
        for callback in callbacks:
            callback.after_report(None, [metrics], None)

    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    worker = WorkerContext(0, 1, chosen, report, StopRequests(output, 0, in_ray=False))
    with graceful(output):
        job(worker)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Turn what Ray makes of a UserError back into it."""
    try:
        yield
    except ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise
