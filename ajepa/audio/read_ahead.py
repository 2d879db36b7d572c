"""Sound files of a store, asked for before they are needed: a store that answers after 50 ms would keep a decoder
waiting most of the time."""

import contextlib
import io
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from ajepa import storage

AT_ONCE = 16  # files that are held or asked for
SMALL = 4 << 20  # bytes; of a larger file the decoder asks for what it needs
Opener = Callable[[str], AbstractContextManager[Any]]  # as `storage.decoder_input`


@contextlib.contextmanager
def read_ahead(uris: Sequence[str]) -> Iterator[Opener]:
    """An opener of these files, which are asked for in this order, AT_ONCE at a time. Memory holds AT_ONCE x SMALL.

    A file that could not be read, or is large or local, is opened as `storage.decoder_input` does. Several threads
    may use the opener.
    """
    ahead = _ReadAhead([uri for uri in uris if not storage.is_local(uri)])
    try:
        yield ahead.open
    finally:
        ahead.close()


class _ReadAhead:
    def __init__(self, uris: Sequence[str]) -> None:
        self._uses = Counter(uris)  # that are still to come: pieces of one file are read from one copy
        self._waiting = deque(dict.fromkeys(uris))
        self._files: dict[str, Future[bytes | None]] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE, "read-ahead") if uris else None
        self._ask()

    @contextlib.contextmanager
    def open(self, uri: str) -> Iterator[Any]:
        with self._lock:
            future = self._files.get(uri)
        try:
            content = None if future is None else future.result()
        except storage.UnreachableError:  # it was waited for
            raise
        except (OSError, ValueError):  # tried again, with the error of the decoder's own reading
            content = None
        try:
            if content is None:
                with storage.decoder_input(uri) as stream:
                    yield stream
            else:
                yield io.BytesIO(content)
        finally:
            self._used(uri)

    def _used(self, uri: str) -> None:
        with self._lock:
            self._uses[uri] -= 1
            if self._uses[uri] <= 0:
                self._files.pop(uri, None)
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            while self._pool is not None and self._waiting and len(self._files) < AT_ONCE:
                uri = self._waiting.popleft()
                if self._uses[uri] > 0:  # else it was opened before its turn
                    self._files[uri] = self._pool.submit(storage.read_small, uri, SMALL, self._stopped)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        self._stopped.set()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
