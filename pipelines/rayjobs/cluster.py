"""The Ray that a command finds or starts. Ray itself is imported when one is needed."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ajepa.errors import UserError, one_line
from pipelines.rayjobs.ray_internals import is_token_refused, silence_token

START_ATTEMPTS = 3
API_SERVER = "RAY_API_SERVER_ADDRESS"  # environment variable of Ray
CONNECT_SECONDS = 10.0  # until a head that does not answer counts as away
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
    if address := require_head():
        if ":" in address and is_token_refused(address):
            raise UserError(
                f"the Ray cluster at RAY_ADDRESS={address} refuses this command's token: set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN, or the file ~/.ray/auth_token, to the cluster's own token"
            )
        try:
            ray.init(logging_level="WARNING")
        except Exception as error:  # no narrower one: another version, a wrong token, no node on this machine
            raise UserError(
                f"cannot join the Ray cluster at RAY_ADDRESS={address} ({one_line(error)}): this host must be a node "
                "of it (`ray start --address=...`), with its token and its version of Ray; from any other host use "
                "`ray job submit`"
            ) from error
        return
    # Ray's workers are niced by 15: beside anything else that wants the CPUs they would get a thirtieth of them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody takes this machine back with notice; the process that would watch for it takes seconds to start.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    silence_token()
    # "local": without it Ray would join a cluster that somebody else has started on this machine.
    options = {"address": "local", "num_cpus": num_cpus, "include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
    for attempt in range(START_ATTEMPTS):
        try:
            with _naming_dashboard(options) if dashboard else contextlib.nullcontext():
                ray.init(**options, logging_level="WARNING")
            return
        except Exception as error:  # Ray raises no narrower one
            ray.shutdown()
            if TOO_LATE not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            print("Ray did not start in its 30 s, other processes want this machine: trying again", file=sys.stderr)


@contextlib.contextmanager
def _naming_dashboard(options: dict[str, Any]) -> Iterator[None]:
    """Inside, Ray's processes are started with the address of their own dashboard. Ray Train asks it for actors, and
    would else look for a cluster on this machine: it may find another one, or the file that a killed one left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        options["dashboard_port"] = free.getsockname()[1]
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://127.0.0.1:{options['dashboard_port']}"
    try:
        yield
    finally:
        del os.environ[API_SERVER]
        if before is not None:
            os.environ[API_SERVER] = before


def require_head() -> str:
    """RAY_ADDRESS as "host:port" or "auto", "" where a command is to start Ray itself. An address at which `ray.init`
    finds no cluster is refused: it would try for minutes.

    Raises:
        UserError: no address of a cluster, or nobody answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    job = "submit the command: ray job submit --address http://HEAD:8265 --working-dir . -- python pipelines/..."
    if address in ("", "local"):
        return ""
    if address == "auto":
        return address
    if address.startswith(("http://", "https://")):
        raise UserError(f"RAY_ADDRESS={address} takes jobs, not drivers: {job}")
    if address.startswith("ray://"):
        raise UserError(f"RAY_ADDRESS={address}: Ray Client is not supported: {job}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={address} is no address of a cluster: give HEAD:6379, or unset it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start one with `ray start --head`, correct "
            "the address, or unset it to start Ray here"
        ) from error
    return address


def join_cluster(folders: Mapping[str, str]) -> None:
    """Connect to the cluster of RAY_ADDRESS, if it names one, to refuse what cannot work there before work begins.

    Args:
        folders: that tasks read or write, by the options that name them.

    Raises:
        UserError: no cluster answers, or a node does not see a folder.
    """
    if require_head():
        from pipelines.rayjobs.nodes import check_nodes

        start_ray(dashboard=False)
        check_nodes(folders)


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
