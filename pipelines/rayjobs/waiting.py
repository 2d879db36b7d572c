"""What a command says of a cluster that is not ready, is busy, or changes under it."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

LOOK_SECONDS = 1.0  # between looks at what the cluster has
WATCH_SECONDS = 2.0  # between looks at the nodes of a running job
ANSWER_SECONDS = 5  # for the dashboard to answer in; the end of a command waits as long


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


class Place:
    """What is said of workers that wait for what other jobs of the cluster use, which Ray does without a word."""

    def __init__(self, resource: str, number: int) -> None:
        """Args:
        number: of the resource that the workers ask for, "CPU"s or "GPU"s.
        """
        self.what, self.number = f"{number} {resource}s", number
        self.had = False  # they have their place
        self.said: int | None = None  # how many were free when the waiting was last mentioned

    def line(self, free: int, states: set[str]) -> str | None:
        """The line to print now, None where there is no news.

        Args:
            free: how many nobody uses.
            states: of the placement groups of this job. Between two attempts there may be none.
        """
        if "CREATED" in states:
            self.had, waited, self.said = True, self.said is not None, None
            return f"the workers have their {self.what}" if waited else None
        if "PENDING" not in states or free >= self.number or free == self.said:
            return None
        self.said = free
        return f"waiting for {self.what} that other jobs of the cluster use: {free} free now"


@contextlib.contextmanager
def watching_cluster(resource: str, number: int) -> Iterator[None]:
    """Inside, say which nodes leave or join the cluster, and what workers wait for that want so many of a resource."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(ended, resource, number), daemon=True, name="watch-cluster")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(ended: threading.Event, resource: str, number: int) -> None:
    nodes: dict[str, str] | None = None
    place = Place(resource, number)
    while True:
        with contextlib.suppress(Exception):  # the head is away, which Ray itself says
            now = {key: str(node["NodeManagerHostname"]) for key, node in _living_nodes().items()}
            for line in changes(now if nodes is None else nodes, now):
                print(line, file=sys.stderr, flush=True)
            if now != nodes:  # the workers may have to look for another place
                place.had = False
            nodes = now
            if not place.had and (news := place.line(_free(resource), _placement_groups())):
                print(news, flush=True)
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


def _free(resource: str) -> int:
    import ray

    return int(ray.available_resources().get(resource, 0))


def _placement_groups() -> set[str]:
    """States of this job's placement groups. Ray Train has one for its workers; Ray's state API asks the dashboard."""
    import ray
    from ray.util.state import list_placement_groups

    job = ("creator_job_id", "=", ray.get_runtime_context().get_job_id())
    return {group.state for group in list_placement_groups(filters=[job], timeout=ANSWER_SECONDS)}
