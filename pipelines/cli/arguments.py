"""Options of the commands: read from dataclasses, and what several of them mean. Imports neither torch nor Ray."""

import os
from collections.abc import Collection, Sequence
from typing import TypeVar, cast

from ajepa.errors import UserError

Args = TypeVar("Args")


def parse(kind: type[Args], description: str, argv: Sequence[str] | None = None, default: Args | None = None) -> Args:
    """Typed options from a dataclass; wrong ones exit with code 2."""
    import tyro  # not for the workers that import this file

    return cast(Args, tyro.cli(kind, description=description, args=argv, default=default))


def option_value(argv: Sequence[str], option: str) -> str | None:
    """The last value of an option that decides what the others start from, before the command line is parsed."""
    values = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == option]
    values += [a.partition("=")[2] for a in argv if a.startswith(f"{option}=")]
    return values[-1] if values else None


def chosen_preset(argv: Sequence[str], presets: Collection[str], default: str) -> str:
    """The preset that a command line names: its settings are the defaults that --help shows and other options change.

    Raises:
        UserError: there is no such preset.
    """
    preset = option_value(argv, "--preset") or default
    if preset not in presets:
        raise UserError(f"unknown preset {preset!r}: choose from {', '.join(presets)}")
    return preset


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
    """Threads of a worker: as given, or its share of this machine's CPUs. Too many make a step several times slower."""
    return threads or max(1, usable_cpus() // max(1, workers_here))


def usable_cpus() -> int:
    """CPUs that this process may use. Only Linux tells them from those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "RAY_ADDRESS" in os.environ
