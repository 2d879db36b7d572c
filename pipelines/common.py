"""What every command shares: argument parsing, one-line errors with exit code 2, and starting Ray."""

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pandas as pd
import ray
import tyro

from ajepa import storage
from ajepa.errors import UserError

Args = TypeVar("Args")


def parse(kind: type[Args], description: str, argv: Sequence[str] | None = None, default: Args | None = None) -> Args:
    """Typed options from a dataclass; wrong ones exit with code 2."""
    return cast(Args, tyro.cli(kind, description=description, args=argv, default=default))


def chosen_preset(argv: Sequence[str], presets: Collection[str], default: str) -> str:
    """The preset that a command line names: its settings are the defaults that --help shows and other options change.

    Raises:
        UserError: there is no such preset.
    """
    names = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--preset"]
    names += [a.partition("=")[2] for a in argv if a.startswith("--preset=")]
    preset = names[-1] if names else default
    if preset not in presets:
        raise UserError(f"unknown preset {preset!r}: choose from {', '.join(presets)}")
    return preset


def markdown(table: pd.DataFrame) -> str:
    """A table's lines; floats with three decimals."""
    columns = list(table.columns)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in table.to_dict("records"):
        cells = [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]).replace("|", "/") for c in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_command(main: Callable[[], object]) -> None:
    """Run a command: a UserError becomes one line and exit code 2, Ctrl-C one line and exit code 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "RAY_ADDRESS" in os.environ


def warn_relative_output(output: str) -> None:
    """A job's working directory is a temporary copy: say where a relative output really goes."""
    if in_ray_job() and not storage.is_uri(output) and not Path(output).is_absolute():
        print(
            f"warning: inside a Ray job the relative --output is {storage.absolute(output)!r}, a folder that goes "
            "with the job: give an absolute path or a URI to keep the result",
            file=sys.stderr,
        )


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster of RAY_ADDRESS (also inside a submitted job), or start Ray on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; spares a warning
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="WARNING")
    else:
        ray.init(num_cpus=num_cpus, include_dashboard=True, dashboard_host="127.0.0.1", logging_level="WARNING")


def cluster_cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
