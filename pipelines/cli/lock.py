"""One command at a time writes to an output. Each puts a lock file of its own into the folder, on any store, and looks
who else is there; the file's time of modification, by the store's own clock, is its heartbeat."""

import contextlib
import datetime
import json
import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from ajepa import storage
from ajepa.errors import UserError
from ajepa.retries import impatient

BEAT_SECONDS = 10.0  # between heartbeats
DEAD_SECONDS = 60.0  # without one
POLL_SECONDS = 1.0  # between looks at another's lock
SAME_START = 2.0  # seconds by which the start of one process may differ when it is asked for again

WAITING, HELD = "waiting", "held"
_own_tokens: set[str] = set()  # of this process; a store that is away at its end keeps a lock that is none of them


@dataclass(frozen=True, kw_only=True)
class Lock:
    """What a lock file says of its process."""

    token: str  # of two that come at the same time, the lower one gets the output
    state: str
    command: str
    host: str
    machine: str  # within which a process number means one process
    pid: int
    started: float  # of the process, seconds since the epoch
    since: str  # of the lock, ISO 8601


@dataclass(frozen=True)
class Seen:
    """Another's lock and, in seconds by the store's clock, the time of its last heartbeat."""

    lock: Lock
    beat: float


@contextlib.contextmanager
def claimed(output: str) -> Iterator[None]:
    """Inside, this process alone writes to the output, which can be written to.

    A process that is known to be gone loses the output at once, one that cannot be asked for after DEAD_SECONDS without
    a heartbeat.

    Raises:
        UserError: another process holds the output, or nothing can be written there.
    """
    output = storage.absolute(output)
    if storage.path_type(output) == "file":  # refused by the command, which knows what it wants there
        yield
        return
    made = _make_folder(output)
    own = _OwnLock(output)
    try:
        own.acquire()
        own.start_beating()
        yield
    finally:
        own.release()
        for folder in made:  # nothing stays of a command that was refused
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make_folder(output: str) -> list[Path]:
    """Make a local folder; those that were not there, the deepest first. An object store needs none."""
    if not storage.is_local(output):
        return []
    missing = [folder for folder in (Path(output), *Path(output).parents) if not folder.exists()]
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create --output {output!r}: {error.strerror or error}") from error
    return missing


class _OwnLock:
    def __init__(self, output: str) -> None:
        process = psutil.Process()
        self.output = output
        self.lock = Lock(
            token=secrets.token_hex(6),
            state=WAITING,
            command=Path(sys.argv[0]).name or "python",
            host=socket.gethostname(),
            machine=machine_id(),
            pid=process.pid,
            started=process.create_time(),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        self.path = lock_path(output, self.lock.token)
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> None:
        _own_tokens.add(self.lock.token)
        first: dict[str, float] = {}  # beat of each lock when it was first seen
        while True:
            try:
                self._write()
                others = self._living_others()
            except OSError as error:
                raise UserError(f"cannot write to --output {self.output!r}: {error}") from error
            if not others:
                break
            for other in others:
                if other.lock.token not in first and _process_of(other.lock) is None:
                    print(f"{_describe(self.output, other, self._now())}: waiting for a heartbeat", file=sys.stderr)
                first.setdefault(other.lock.token, other.beat)
                lives = _process_of(other.lock) or other.beat > first[other.lock.token]
                if lives and (other.lock.state == HELD or other.lock.token < self.lock.token):
                    raise UserError(
                        f"{_describe(self.output, other, self._now())}: wait for it to end or stop it, or choose "
                        "another --output"
                    )
            time.sleep(POLL_SECONDS)
        self.lock = replace(self.lock, state=HELD)
        self._write()

    def start_beating(self) -> None:
        self._beating = threading.Thread(target=self._beat, daemon=True, name="output-lock")
        self._beating.start()

    def release(self) -> None:
        self._ended.set()
        _own_tokens.discard(self.lock.token)
        if self._beating is not None:
            self._beating.join()  # it could write the file once more
        with impatient(), contextlib.suppress(OSError, UserError):  # it is stale soon
            storage.delete(self.path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with impatient(), contextlib.suppress(OSError, UserError):  # a store that is away for a while
                newer = [s for s in read_locks(self.output) if s.lock.state == HELD and s.lock.since > self.lock.since]
                if storage.path_type(self.path) != "file" or newer:
                    self._end_process()
                if storage.is_local(self.path):  # a full disk has no room for a new file
                    os.utime(self.path)
                else:
                    self._write()

    def _end_process(self) -> None:
        """This process had no heartbeat for so long that another one took over: it must not write any more."""
        print(
            f"error: --output {self.output!r} was taken over by another process, as this one had no heartbeat for "
            f"{DEAD_SECONDS:g} s: ended",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    def _write(self) -> None:
        storage.write_text(self.path, json.dumps(asdict(self.lock)))

    def _now(self) -> float:
        """By the store's clock, as of the last write."""
        return next((s.beat for s in read_locks(self.output) if s.lock.token == self.lock.token), time.time())

    def _living_others(self) -> list[Seen]:
        """Others' locks; those of processes that are gone are deleted."""
        seen = read_locks(self.output)
        now = next((s.beat for s in seen if s.lock.token == self.lock.token), time.time())
        living = []
        for other in seen:
            if other.lock.token == self.lock.token:
                continue
            if _process_of(other.lock) is False or now - other.beat > DEAD_SECONDS:
                print(f"{_describe(self.output, other, now)} and has ended: taking over", file=sys.stderr)
                storage.delete(lock_path(self.output, other.lock.token))
            else:
                living.append(other)
        return living


def lock_path(output: str, token: str) -> str:
    return storage.join(output, f"{storage.LOCK}{token}.json")


def read_locks(output: str) -> list[Seen]:
    """The locks of an output. One that is deleted meanwhile is none."""
    found = []
    for name, modified in storage.list_folder(output):
        if name.startswith(storage.LOCK) and name.endswith(".json"):
            with contextlib.suppress(FileNotFoundError, KeyError, TypeError, ValueError):
                lock = Lock(**json.loads(storage.read_text(storage.join(output, name))))
                found.append(Seen(lock, modified))
    return found


def machine_id() -> str:
    """Differs between machines, between starts of one machine, and between containers with process numbers of their
    own. Only Linux tells the last two apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no path)
    except OSError:
        return f"{platform.node()} {psutil.boot_time():.0f}"


def _process_of(lock: Lock) -> bool | None:
    """Whether the process of a lock lives; None where it cannot be asked for from here."""
    if lock.machine != machine_id():
        return None
    try:
        process = psutil.Process(lock.pid)
        if lock.pid == os.getpid():
            return lock.token in _own_tokens
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and abs(process.create_time() - lock.started) < SAME_START
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


def _describe(output: str, seen: Seen, now: float) -> str:
    lock = seen.lock
    return (
        f"--output {output!r} is in use by process {lock.pid} on {lock.host} ({lock.command}) since {lock.since}, "
        f"last heartbeat {max(0.0, now - seen.beat):.0f} s ago"
    )
