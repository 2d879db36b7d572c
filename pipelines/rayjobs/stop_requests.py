"""How a run is asked to stop between two steps, with a checkpoint: Ctrl-C or SIGTERM to the command, SIGTERM to a
worker, a node that Ray drains, or a file STOP put into the run folder."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from ajepa import storage
from ajepa.errors import Terminated, UserError
from ajepa.training.worker import StopRequest
from pipelines.rayjobs.ray_internals import is_drained

STOP_FILE = "STOP"
POLL_SECONDS = 0.2  # between looks for the STOP file
STORE_POLL_SECONDS = 2.0  # the same in an object store, where a look takes as long as a small step

_terminated = threading.Event()  # SIGTERM came to this process


def watch_sigterm() -> None:
    """Note SIGTERM instead of dying of it. Only a main thread may ask for that."""
    _terminated.clear()
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


class Orphaned(Exception):
    """The Ray that started this worker has ended, with its command or its machine's part of the cluster."""


class StopPoller:
    """Asked before every step what the world outside wants of this worker.

    Raises (from a call):
        Orphaned: the Ray of this worker has ended. It would go on for seconds, beside the next attempt.
    """

    def __init__(self, output: str, rank: int, in_ray: bool) -> None:
        self.where, self.rank, self.in_ray = storage.join(output, STOP_FILE), rank, in_ray
        self._poll = STORE_POLL_SECONDS if storage.is_uri(output) else POLL_SECONDS
        self._looked, self._saved = time.monotonic(), False
        self._parent = os.getppid()  # of a worker, the raylet of its node
        self._found, self._looking = False, threading.Lock()

    def __call__(self) -> StopRequest:
        if self.in_ray and os.getppid() != self._parent:
            raise Orphaned("Ray has ended")
        if _terminated.is_set():
            return StopRequest.RESTART if self.in_ray else StopRequest.STOP
        if self.rank == 0 and time.monotonic() - self._looked > self._poll:
            self._looked = time.monotonic()
            if storage.is_uri(self.where):  # takes as long as a step, or as a store that is away
                threading.Thread(target=self._look, daemon=True, name="stop-file").start()
            else:
                self._look()
        if self._found:
            return StopRequest.STOP
        if self.in_ray and not self._saved and is_drained():
            # Ray goes on by itself once the node is gone.
            self._saved = True
            return StopRequest.SAVE
        return StopRequest.GO_ON

    def _look(self) -> None:
        if not self._looking.acquire(blocking=False):
            return  # the look before has no answer yet
        try:
            self._found = self._found or storage.path_type(self.where) == "file"
        except UserError:  # a store that does not answer: look again later
            pass
        finally:
            self._looking.release()


@contextlib.contextmanager
def graceful(output: str) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM asks the run to write a checkpoint and stop, the second one ends it at once.
    Outside a main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        os.write(2, b"stopping after this step, with a checkpoint (once more: at once)\n")  # print is not reentrant
        _terminated.set()  # seen by training inside this process
        with contextlib.suppress(OSError):  # a full disk: the second signal still ends it
            storage.write_text(storage.join(output, STOP_FILE), "")  # seen by workers

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    _terminated.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _terminated.clear()
        storage.delete(storage.join(output, STOP_FILE))
    if received:
        raise Terminated if received[0] == signal.SIGTERM else KeyboardInterrupt


def in_thread(work: Any) -> None:
    """Run `work` in a thread while the main thread takes signals; its error is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised by the caller, not lost
            errors.append(error)

    thread = threading.Thread(target=run, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # a join without a limit would not let signals through
    if errors:
        raise errors[0]
