"""Training on Ray Train's workers: the driver's side, what the controller receives, and a worker's entry. The
controller imports this file, so no model code is imported here: a worker gets it with its job."""

import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from ajepa import storage
from ajepa.checkpoints import warned_messages
from ajepa.errors import UserError
from ajepa.training.async_metrics import NonFiniteLoss
from ajepa.training.worker import WorkerHooks
from pipelines.cli.arguments import choose_threads
from pipelines.rayjobs import ray_internals
from pipelines.rayjobs.cluster import cluster_resource, start_ray
from pipelines.rayjobs.failures import one_line_failures
from pipelines.rayjobs.stop_requests import StopPoller, graceful, in_thread, watch_sigterm
from pipelines.rayjobs.train_job import Callback, Workers
from pipelines.rayjobs.waiting import wait_for_resources, watching_cluster

# Seconds between the controller's looks at its workers, 2 if it were for Ray. A worker's report waits for the next
# look, and so does SIGTERM: its handler runs when the main thread next does something.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
UNNAMED_DELAY_SECONDS = 2.0  # a worker that cannot name the clips waits for the one that can to raise first


def train_worker(settings: dict[str, Any]) -> None:
    """Entry of one Ray Train worker."""
    context = ray.train.get_context()
    rank, output = context.get_world_rank(), settings["output"]
    torch.set_num_threads(choose_threads(settings["threads"], context.get_local_world_size()))
    ray_internals.silence_reports()
    ray_internals.shorten_errors()
    ray_internals.hide_user_errors(ray_internals.WORKER_ERRORS)
    warned_messages.update(settings["warned"])  # by the command already
    worker = WorkerHooks(
        rank,
        context.get_world_size(),
        ray.train.torch.get_device(),
        ray.train.report,
        StopPoller(output, rank, in_ray=True),
    )
    try:
        settings["job"](worker)
    except NonFiniteLoss as error:
        if not error.rows:
            time.sleep(UNNAMED_DELAY_SECONDS)
        raise


class Reports(UserCallback):
    """Hands every report to the callbacks, and ends the run at a worker's UserError: a restart would meet it again."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        for callback in self.callbacks:
            callback.after_report(run_context, metrics, checkpoint)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        mistakes = [error for error in worker_exceptions.values() if isinstance(error, UserError)]
        if mistakes:  # of several, one that names clips
            raise max(mistakes, key=lambda error: bool(getattr(error, "rows", ())))


class SignalledTorchConfig(TorchConfig):
    """torch.distributed, with workers that note SIGTERM. The handler is set here, in a worker's main thread: its
    training function runs in another one."""

    @property
    def backend_cls(self) -> type[Backend]:
        ray_internals.shorten_errors()  # of the controller, which asks for this once its loggers are set up
        torch_backend = super().backend_cls

        class SignalledBackend(torch_backend):  # type: ignore[misc, valid-type]
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                ray_internals.hide_user_errors(ray_internals.CONTROLLER_ERRORS)
                super().on_start(worker_group, backend_config)
                worker_group.execute(watch_sigterm)

        return SignalledBackend


def choose_resource(workers: Workers) -> str:
    """What each worker takes one of, "GPU" or "CPU".

    Raises:
        UserError: the cluster has too few.
    """
    start_ray()
    use_gpu = workers.device == "cuda" or (workers.device == "auto" and cluster_resource("GPU") > 0)
    resource = "GPU" if use_gpu else "CPU"
    least = workers.least
    nodes = least if workers.spread else 1
    have, have_nodes = wait_for_resources(resource, least, nodes, workers.wait_s)
    if least > have:
        if use_gpu and not have:
            raise UserError("--device cuda: Ray finds no GPU")
        raise UserError(f"--num-workers {least} needs as many {resource}s; the cluster has {have}")
    if nodes > have_nodes:
        raise UserError(f"--spread puts {least} workers on as many nodes; {have_nodes} have {resource}s")
    return resource


def run_with_ray(
    job: Callable[[WorkerHooks], None], output: str, workers: Workers, callbacks: Sequence[Callback]
) -> None:
    """Do a job on every worker; see `pipelines.rayjobs.train_job.fit`."""
    resource = choose_resource(workers)
    use_gpu = resource == "GPU"
    if not isinstance(workers.number, int):
        # After a loss Ray first tries as many workers again, on what it still takes for the cluster, for 60 s if it
        # were for Ray; only then fewer.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    settings = {"job": job, "output": output, "threads": workers.threads, "warned": warned_messages}
    trainer = TorchTrainer(
        functools.partial(train_worker, settings),  # as train_loop_config the controller would unpickle the job as well
        torch_config=SignalledTorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.number,
            use_gpu=use_gpu,
            placement_strategy="STRICT_SPREAD" if workers.spread else "PACK",
        ),
        # Checkpoints are the run folder's own, written by rank 0 and found again by every attempt. Ray only gets
        # metrics; its state gets a fresh name each time, for a name that finished once would silently do nothing.
        run_config=RunConfig(
            storage_path=storage.join(output, "ray"),
            name=uuid.uuid4().hex[:12],
            failure_config=FailureConfig(max_failures=workers.max_failures),
            callbacks=[Reports(callbacks)],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with one_line_failures(), watching_cluster(resource, workers.least):
        if threading.current_thread() is not threading.main_thread():  # a trial of Ray Tune
            trainer.fit()
            return
        with graceful(output):
            in_thread(trainer.fit)
