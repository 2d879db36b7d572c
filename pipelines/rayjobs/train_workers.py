"""Training on Ray Train's workers: the driver's side, what the controller hears, and a worker's entry. The controller
imports this file, so no model code is imported here: a worker gets it with its job."""

import contextlib
import functools
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
from ajepa.checkpoints import said
from ajepa.errors import Preempted, UserError
from ajepa.training.async_metrics import NonFiniteLoss
from ajepa.training.worker import WorkerContext
from pipelines.cli.arguments import choose_threads
from pipelines.rayjobs.cluster import cluster_cpus, cluster_resource, start_ray
from pipelines.rayjobs.stop_requests import StopRequests, graceful, in_thread, watch_sigterm
from pipelines.rayjobs.train_job import Callback, Workers

# Seconds between the controller's looks at its workers, 2 if it were for Ray. A worker's report waits for the next
# look, and so does SIGTERM: its handler runs when the main thread next does something.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
VAGUE_SECONDS = 2.0  # a worker that cannot name the clips lets the one that can speak first


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


class SigtermWatcher(WorkerGroupCallback):
    """Lets every worker of a group note SIGTERM: the training function runs in a thread, which may not ask for it."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        ray.get([worker.execute_async(watch_sigterm) for worker in worker_group.get_workers()])


class Reports(UserCallback):
    """Hands every report to those who want to hear of it."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for callback in self.callbacks:
            callback.after_report(run_context, metrics, checkpoint)


def choose_resource(workers: Workers) -> str:
    """What each worker takes one of, "GPU" or "CPU".

    Raises:
        UserError: the cluster has too few.
    """
    start_ray()
    gpus = cluster_resource("GPU")
    use_gpu = workers.device == "cuda" or (workers.device == "auto" and gpus > 0)
    resource, have = ("GPU", gpus) if use_gpu else ("CPU", cluster_cpus())
    least = workers.number if isinstance(workers.number, int) else workers.number[0]
    if least > have:
        raise UserError(f"--num-workers {least} needs as many {resource}s; the cluster has {have}")
    return resource


def fit_with_ray(
    job: Callable[[WorkerContext], None], output: str, workers: Workers, callbacks: Sequence[Callback]
) -> None:
    """Do a job on every worker; see `pipelines.rayjobs.train_job.fit`."""
    use_gpu = choose_resource(workers) == "GPU"
    if not isinstance(workers.number, int):
        # After a loss Ray first tries as many workers again, on what it still takes for the cluster, for 60 s if it
        # were for Ray; only then fewer.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    settings = {"job": job, "output": output, "threads": workers.threads, "said": said}
    trainer = TorchTrainer(
        functools.partial(train_worker, settings),  # as train_loop_config the controller would unpickle the job as well
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers.number, use_gpu=use_gpu),
        # Checkpoints are the run folder's own, written by rank 0 and found again by every attempt. Ray only hears of
        # figures; its state gets a fresh name each time, for a name that finished once would silently do nothing.
        run_config=RunConfig(
            storage_path=storage.join(output, "ray"),
            name=uuid.uuid4().hex[:12],
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[Reports(callbacks), SigtermWatcher(), Unmendable()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with _one_line():
        if threading.current_thread() is not threading.main_thread():  # a trial of Ray Tune
            trainer.fit()
            return
        with graceful(output):
            in_thread(trainer.fit)


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
