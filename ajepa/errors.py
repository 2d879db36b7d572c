"""Exceptions that commands and their workers know by name. Commands print a UserError as one line and exit with 2."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line: its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class UserError(ValueError):
    """A mistake in the input or the options. The message says what is wrong and what to do about it."""


def require(condition: bool, message: str) -> None:
    """Raise a UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken like Ctrl-C but with its own exit code."""

    exit_code = 143


class Preempted(Exception):
    """A training worker's machine is being taken away; a checkpoint of the step it reached is written."""
