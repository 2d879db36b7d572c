"""What Ray raises of a failed job, as one line."""

import contextlib
from collections.abc import Iterator

from ajepa.errors import UserError, one_line
from pipelines.cli.command import FailedError
from pipelines.rayjobs import ray_internals

LONGEST = 400  # characters of an error


@contextlib.contextmanager
def one_line_failures() -> Iterator[None]:
    """Turn what Ray makes of a UserError back into it, and other failures of tasks and workers into a FailedError."""
    import ray.exceptions
    import ray.train

    try:
        yield
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise FailedError(_said(one_line(cause))) from error
    except ray.train.WorkerGroupError as error:
        rank, cause = min(error.worker_failures.items())
        cause = getattr(cause, "health_check_failure", cause)  # of a worker that died
        raise FailedError(_said(f"worker {rank}: {type(cause).__name__}: {one_line(cause)}")) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        lines = [line for line in str(error).splitlines() if ray_internals.ERROR_LINE.match(line)]
        raise FailedError(_said(lines[0] if lines else one_line(error))) from error  # the first one caused the others
    except ray.exceptions.RayError as error:
        raise FailedError(_said(one_line(error))) from error


def _said(what: str) -> str:
    """With where the rest is. Of some errors Ray's text is a page."""
    return f"{what[:LONGEST]} (all that Ray logged of it is in {ray_internals.log_folder()} on each node)"
