"""How every command runs: one-line errors with exit code 2, signals, and what begins. A command imports nothing that
takes long before its options are read: its work lies in pipelines/jobs."""

import os
import signal
import sys
from collections.abc import Callable

from ajepa.errors import Terminated, UserError, one_line
from pipelines.cli.terminal import live_lines

# Training has advice of its own, see `ajepa.training.session`.
OUT_OF_MEMORY = (
    "free some, give embed.py or predict.py a smaller --batch-size, or use the CPU (CUDA_VISIBLE_DEVICES=-1)"
)


class FailedError(Exception):
    """The work failed, by no mistake of the user: one line and exit code 1."""


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
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except FailedError as error:
        if os.environ.get("AJEPA_TRACEBACK"):
            raise
        print(f"failed: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if "OutOfMemoryError" not in {kind.__name__ for kind in type(error).__mro__}:  # torch's, which may not be there
            raise
        print(f"error: out of GPU memory: {OUT_OF_MEMORY} ({one_line(error)})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("interrupted: run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    finally:
        signal.signal(signal.SIGTERM, before)
