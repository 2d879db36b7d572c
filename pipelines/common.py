"""What every command shares: options from a dataclass, one-line errors with exit code 2. A command imports nothing that
takes long before its options are read: its work lies in pipelines/jobs."""

import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar, cast

import tyro

from ajepa.errors import Terminated, UserError
from pipelines.terminal import live_lines

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


def announce(what: str) -> None:
    """Say what begins, before the libraries that do it are imported: that takes seconds."""
    print(what, file=sys.stderr, flush=True)


def _terminate(*_: object) -> None:
    raise Terminated


def run_command(main: Callable[[], object]) -> None:
    """Run a command: a UserError, or what a disk, a store or the network refuses, becomes one line and exit code 2,
    Ctrl-C one line and exit code 130, SIGTERM the same with 143."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with live_lines():
            main()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and os.environ.get("AJEPA_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    finally:
        signal.signal(signal.SIGTERM, before)
