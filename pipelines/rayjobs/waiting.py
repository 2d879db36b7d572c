"""What a command says of a cluster that is not ready, is busy, or changes under it."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

LOOK_SECONDS = 1.0  # between looks at what the cluster has
WATCH_SECONDS = 2.0  # between looks at the nodes of a running job


def wait_for_resources(resource: str, number: int, nodes: int, seconds: float) -> tuple[int, int]:
    """Wait until the cluster has so many "CPU"s or "GPU"s, on at least so many nodes, and tell an autoscaler that they
    are wanted.

    Args:
        seconds: to wait at most; 0 only looks.

    Returns:
        How many there are then, and on how many nodes.
    """
    have = _resources(resource)
    if seconds <= 0 or _enough(have, number, nodes):
        return have
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{resource: 1}] * number)
    deadline, said = time.monotonic() + seconds, None
    while not _enough(have, number, nodes) and (left := deadline - time.monotonic()) > 0:
        if have != said:
            where = f" on {nodes} nodes" if nodes > 1 else ""
            print(
                f"waiting for {number} {resource}s{where}: the cluster has {have[0]} on {have[1]}; {left:.0f} s left",
                flush=True,
            )
            said = have
        time.sleep(min(LOOK_SECONDS, left))
        have = _resources(resource)
    request_resources(bundles=[])
    return have


def _enough(have: tuple[int, int], number: int, nodes: int) -> bool:
    return have[0] >= number and have[1] >= nodes


def _resources(resource: str) -> tuple[int, int]:
    """How many of a resource the cluster has, and on how many nodes."""
    found = [node["Resources"].get(resource, 0) for node in _living_nodes().values()]
    return int(sum(found)), sum(count >= 1 for count in found)


def note_busy(resource: str, number: int) -> None:
    """Say that workers have to wait for other jobs, which Ray does without a word."""
    import ray

    free = int(ray.available_resources().get(resource, 0))
    if free < number:
        print(f"waiting for {number} {resource}s that other jobs of the cluster use: {free} free now", flush=True)


@contextlib.contextmanager
def watching_nodes() -> Iterator[None]:
    """Inside, say which nodes leave or join the cluster."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended,), daemon=True, name="watch-nodes")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event) -> None:
    before: dict[str, str] | None = None
    while True:
        with contextlib.suppress(Exception):  # the head is away, which Ray itself says
            now = {key: str(node["NodeManagerHostname"]) for key, node in _living_nodes().items()}
            for line in changes(now if before is None else before, now):
                print(line, file=sys.stderr, flush=True)
            before = now
        if ended.wait(WATCH_SECONDS):
            return


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each node, host by id, that left or joined the cluster in between."""
    count = f"the cluster: {len(now)} node{'s' * (len(now) != 1)} now"
    left = sorted(before[key] for key in before.keys() - now.keys())
    joined = sorted(now[key] for key in now.keys() - before.keys())
    return [f"node {host} left {count}" for host in left] + [f"node {host} joined {count}" for host in joined]


def _living_nodes() -> dict[str, Any]:
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
