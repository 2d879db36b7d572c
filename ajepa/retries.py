"""What is done again where an object store does not answer, and for how long."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import TypeVar

from ajepa.errors import UserError

T = TypeVar("T")

WAITS = (1.0, 5.0)  # seconds before another try; each try already holds the client's own retries
SILENT = 10.0  # of such a try, after which the store is said to be away
LONG_WAIT = 15.0  # between the tries after these, of a store that has answered before
PATIENCE = "AJEPA_STORE_PATIENCE"  # environment variable: seconds for which such a store is asked again
DEFAULT_PATIENCE = 600.0
# What the store answered about the object itself; anything else is the connection's or the server's fault.
ANSWERED = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|HTTP status (?!408|429)4\d\d"
    r"|cloud::Status\((NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED)"  # of gs://
)

_answered: set[str] = set()  # stores that this process has reached
_away: set[str] = set()  # those of them that threads of this process wait for
_lock = threading.Lock()
_this_thread = threading.local()  # has `impatient` inside `impatient()`


class UnreachableError(OSError):
    """A store did not answer, after several tries: nothing is known about the file."""


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Inside, this thread does not wait for a store that has gone away: for what is done again later anyway."""
    before, _this_thread.impatient = getattr(_this_thread, "impatient", False), True
    try:
        yield
    finally:
        _this_thread.impatient = before


def patience() -> float:
    """Seconds for which a store that has answered before is asked again.

    Raises:
        UserError: the variable holds no number.
    """
    if getattr(_this_thread, "impatient", False):
        return 0.0
    given = os.environ.get(PATIENCE, "")
    try:
        return float(given) if given else DEFAULT_PATIENCE
    except ValueError as error:
        raise UserError(f"{PATIENCE}={given!r} is no number of seconds") from error


def again_and_again(store: str, path: str, work: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Do `work`, again after a while where a store does not answer.

    A store that never answered is given up after WAITS: its address may be wrong. One that has is waited for: a run of
    a week survives its restart. Both ends of such a wait are said on stderr.

    Args:
        store: scheme and bucket.
        path: for messages.
        stopped: ends the waiting once it is set.

    Raises:
        UnreachableError: it never did.
        OSError: what is wrong with the object itself.
    """
    begin, tries, waiting = monotonic(), 0, False
    while True:
        try:
            result = work()
        except UnreachableError:  # of other work inside this one
            raise
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError) or ANSWERED.search(str(error)):
                _answered.add(store)
                raise
            reason, seconds = str(error).splitlines()[0], patience() if store in _answered else 0.0
            wait = WAITS[tries] if tries < len(WAITS) else LONG_WAIT
            left = begin + seconds - monotonic()
            if (tries >= len(WAITS) and left <= 0) or (stopped is not None and stopped.is_set()):
                raise UnreachableError(f"cannot reach {path!r}: {reason}") from error
            # Where packets are lost, a single try takes a minute or two.
            if left > 0 and (tries >= len(WAITS) or monotonic() - begin > SILENT):
                waiting = True
                _say_away(store, left, reason)
        else:
            _answered.add(store)
            if waiting:
                _say_back(store, monotonic() - begin)
            return result
        tries += 1
        pause(wait, stopped)


def _say_away(store: str, left: float, reason: str) -> None:
    """Once a process, however many of its threads wait."""
    with _lock:
        known = store in _away
        _away.add(store)
    if not known:
        where = reason.find("AWS Error")  # after a long sentence on the object
        print(
            f"warning: {store} does not answer: asking again for {left:.0f} s ({reason[max(0, where) :]})",
            file=sys.stderr,
        )


def _say_back(store: str, seconds: float) -> None:
    with _lock:
        known = store in _away
        _away.discard(store)
    if known:
        print(f"{store} answers again after {seconds:.0f} s", file=sys.stderr)


def pause(seconds: float, stopped: threading.Event | None) -> None:
    """Sleep, no longer than until `stopped` is set."""
    if stopped is None:
        sleep(seconds)
    else:
        stopped.wait(seconds)
