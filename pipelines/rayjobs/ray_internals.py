"""What the jobs use of Ray beyond its public interface, all in one place. tests/pipelines/test_ray_internals.py names
what an upgrade of Ray changed. Names are looked up when used, so importing this file imports nothing of Ray."""

import importlib
import logging
import re
import sys

from ajepa.errors import Preempted, UserError

# Loggers of Ray, named after its modules.
DATA_PROGRESS = ("ray.data._internal.progress", "ray.data._internal.execution.streaming_executor")
TOKEN = "ray._private.authentication.authentication_token_setup"  # noqa: S105 (a module)
WORKER_ERRORS = ("ray.train.v2._internal.util",)
CONTROLLER_ERRORS = (
    "ray.train.v2._internal.execution.callback_manager",
    "ray.train.v2._internal.execution.controller.controller",
)
TRAIN_CONTEXT = "ray.train.v2._internal.execution.context"  # its logger is named after its file

ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b")  # begins the line of an error


class FirstLine(logging.Formatter):
    """Of an error the line that says what it is, instead of its traceback."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return without_traceback(self.inner.format(record))


def without_traceback(text: str) -> str:
    """A message with a traceback as one line: how the message begins, and the error that the traceback ends with."""
    before, traceback, after = text.partition("Traceback (most recent call last):")
    if not traceback:
        return text
    first = next(iter(before.strip().splitlines()), "")
    errors = [line for line in after.splitlines() if ERROR_LINE.match(line)]
    return ": ".join(filter(None, [first.rstrip(": "), errors[-1] if errors else ""]))


def shorten_errors() -> None:
    """In this process, Ray's loggers show errors in one line; the log files of its session keep the tracebacks."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        for handler in logging.getLogger(name).handlers:
            for shown in (handler, getattr(handler, "plain_handler", None)):  # a worker of Ray uses the latter
                if isinstance(shown, logging.StreamHandler) and not isinstance(shown.formatter, FirstLine):
                    shown.setFormatter(FirstLine(shown.formatter or logging.Formatter()))


class HideUserErrors(logging.Filter):
    """Leaves out what Ray logs of a UserError, which the command prints in one line, and shortens a Preempted."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if isinstance(error, Preempted):
            record.msg = str(error)
        return not isinstance(error, UserError)


def hide_user_errors(loggers: tuple[str, ...]) -> None:
    """In this process, for WORKER_ERRORS or CONTROLLER_ERRORS."""
    for name in loggers:
        logging.getLogger(name).addFilter(HideUserErrors())


def silence_data_progress() -> None:
    """Ray Data would log that there is no progress bar of its own."""
    for name in DATA_PROGRESS:
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_token() -> None:
    """Ray would log its authentication token's place on every start."""
    logging.getLogger(TOKEN).setLevel(logging.ERROR)


def is_token_refused(address: str) -> bool:
    """Whether a cluster, "host:port", takes no connection with this process's token, or without one. `ray.init` would
    try for 20 seconds and then not say why; without a token where one is wanted it would abort the process."""
    exceptions = importlib.import_module("ray.exceptions")
    try:
        importlib.import_module(TOKEN).ensure_token_if_auth_enabled(None, create_token_if_missing=False)
        importlib.import_module("ray._raylet").GcsClient(address=address)
    except exceptions.AuthenticationError:
        return True
    except Exception:  # ray.init says more
        return False
    return False


def silence_reports() -> None:
    """Ray Train would log every report of every rank; its LoggingConfig does not reach this logger."""
    logging.getLogger(importlib.import_module(TRAIN_CONTEXT).__file__).setLevel(logging.WARNING)


def log_folder() -> str:
    """Of this session of Ray; other nodes have one at the same path."""
    node = importlib.import_module("ray._private.worker")._global_node
    return f"{node.get_session_dir_path()}/logs" if node else "its log folder"


def is_drained() -> bool:
    """Whether Ray has told this worker's group that one of its nodes goes away. The public `get_preemption_info` waits
    for all workers, which is too slow to ask before every step."""
    context = importlib.import_module(TRAIN_CONTEXT).get_train_context()
    return context.preemption_context.preemption_info is not None
