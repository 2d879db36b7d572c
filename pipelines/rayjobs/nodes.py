"""What the nodes of a cluster have to have in common: versions, and the folders that are no URIs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from ajepa import storage
from ajepa.errors import UserError, one_line

LOOKS_SECONDS = 60.0  # for a node to answer; one that does not may be about to go, which the job itself deals with
LATE_SECONDS = 5.0  # a shared file system may show a new file a little later elsewhere
MOST_LISTED, MOST_NAMES = 10_000, 100  # names of a folder that are listed, and looked for
PACKAGES = ("ajepa", "torch")  # Ray itself refuses nodes of another Ray


@dataclass(frozen=True)
class Seen:
    """What one node sees."""

    missing: dict[str, str]  # the first name that is not there, by option
    versions: dict[str, str]


def check_nodes(folders: Mapping[str, str]) -> None:
    """Refuse local folders that a node of the cluster does not see as this process does, and nodes with other versions.
    Ray has been started; on a cluster of one node nothing is to be checked.

    Args:
        folders: absolute path or URI by the option that names it. A file, as a manifest, is read by this process alone.

    Raises:
        UserError: a node differs.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own and _works(node["Resources"])]
    names = {option: (path, _names(path)) for option, path in folders.items() if storage.is_local(path)}
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = []
    for node in others:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node["NodeManagerHostname"], task.options(scheduling_strategy=strategy).remote(names)))
    ours = _versions()
    deadline = time.monotonic() + LOOKS_SECONDS
    for host, answer in asked:
        try:
            seen = ray.get(answer, timeout=max(deadline - time.monotonic(), 0.1))
        except ray.exceptions.RayTaskError as error:
            raise UserError(f"node {host} cannot run this command: {one_line(error.cause or error)}") from error
        except ray.exceptions.RayError:
            continue
        for option, name in seen.missing.items():
            path = folders[option]
            what = "does not see what this process writes" if name.startswith(storage.LOCK) else f"has no {name!r}"
            raise UserError(
                f"{option} {path!r} is on this machine alone: node {host} {what} there. "
                "Give a URI like s3://bucket/folder, or a folder that all nodes mount at the same path"
            )
        for package, version in ours.items():
            if seen.versions.get(package, version) != version:
                raise UserError(
                    f"node {host} has {package} {seen.versions[package]}, this process {version}: install the same "
                    "environment on every node"
                )


def look(folders: Mapping[str, tuple[str, Sequence[str]]]) -> Seen:
    """What this node sees: runs there as a task of Ray."""
    missing: dict[str, str] = {}
    deadline = time.monotonic() + LATE_SECONDS
    for option, (path, names) in folders.items():
        for name in names:
            while not Path(path, name).exists():
                if time.monotonic() > deadline:
                    missing.setdefault(option, name)
                    break
                time.sleep(0.2)
    return Seen(missing, _versions())


def _works(resources: Mapping[str, Any]) -> bool:
    """Whether tasks and workers run on a node; a head without CPUs only holds the cluster together."""
    return bool(resources.get("CPU") or resources.get("GPU"))


def _names(path: str) -> list[str]:
    """Some names of a folder; first those of lock files, of which no other folder has the same."""
    if not Path(path).is_dir():
        return []
    names = [entry.name for entry in islice(Path(path).iterdir(), MOST_LISTED)]
    return sorted(names, key=lambda name: (not name.startswith(storage.LOCK), name))[:MOST_NAMES]


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from its folder
            continue
    return found
