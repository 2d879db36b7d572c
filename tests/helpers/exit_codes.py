"""A command in this process, as a shell sees it."""

from collections.abc import Callable

from pipelines.cli.command import run_command


def exit_code(main: Callable[[], object]) -> object:
    """What a command exits with."""
    try:
        run_command(main)
    except SystemExit as stop:
        return stop.code
    return 0
