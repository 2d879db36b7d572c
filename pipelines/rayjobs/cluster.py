"""The Ray that a command finds or starts. Ray itself is imported when one is needed."""

import os
import signal
import sys
import threading
from typing import Any

from pipelines.rayjobs.ray_internals import silence_token

START_ATTEMPTS = 3
TOO_LATE = "timed out during startup"  # in what Ray raises where its processes do not start within fixed times


def start_ray(num_cpus: int | None = None, dashboard: bool = True) -> None:
    """Connect to the cluster of RAY_ADDRESS (also inside a submitted job), or start Ray on this machine, without what
    only several machines need. Ray Train, Ray Tune and `ray job submit` need the dashboard, Ray Data does not."""
    import ray

    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start_ray(ray, num_cpus, dashboard)
    finally:  # Ray takes SIGTERM for itself; commands end by it in their own way
        if threading.current_thread() is threading.main_thread() and callable(before):
            signal.signal(signal.SIGTERM, before)


def _start_ray(ray: Any, num_cpus: int | None, dashboard: bool) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; spares a warning
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="WARNING")
        return
    # Ray's workers are niced by 15: beside anything else that wants the CPUs they would get a thirtieth of them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody takes this machine back with notice; the process that would watch for it takes seconds to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    silence_token()
    options = {"num_cpus": num_cpus, "include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(**options, logging_level="WARNING")
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if TOO_LATE not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            print("Ray did not start in its 30 s, other processes want this machine: trying again", file=sys.stderr)


def cluster_cpus() -> int:
    return cluster_resource("CPU") or 1


def cluster_resource(name: str) -> int:
    """How many of a resource, "CPU" or "GPU", the cluster has in all."""
    import ray

    return int(ray.cluster_resources().get(name, 0))


def largest_node(name: str) -> float:
    """The most of a resource that one node of the cluster has in all."""
    import ray

    return max((float(node["Resources"].get(name, 0)) for node in ray.nodes() if node["Alive"]), default=0.0)
