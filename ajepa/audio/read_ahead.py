"""The sound of clips, wherever it lies, asked for before it is needed: a store that answers after 50 ms would keep a
decoder waiting most of the time."""

import contextlib
import io
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ajepa import storage
from ajepa.audio import remote_file
from ajepa.audio.archives.hdf5_rows import Hdf5Rows
from ajepa.audio.archives.parquet_rows import ParquetRows
from ajepa.audio.errors import AudioError
from ajepa.audio.pieces import Pieces
from ajepa.audio.streams import Window

AT_ONCE = 16  # files that are held or asked for
SMALL = 4 << 20  # bytes; of a larger file the decoder asks for what it needs
Clip = Mapping[str, Any]  # a manifest row


@dataclass(frozen=True)
class Opener:
    """Opens a clip: a stream that decoders read, `Samples`, or an `OpenSound`."""

    open: Callable[[Clip], AbstractContextManager[Any]]
    pieces: Pieces | None = None

    def __call__(self, clip: Clip) -> AbstractContextManager[Any]:
        return self.open(clip)


class Reader(Protocol):
    """Reads the sound of clips of one kind of locator; several threads may use it."""

    def open(self, clip: Clip) -> AbstractContextManager[Any]:
        """As an Opener. AudioError, OSError where the sound cannot be read."""
        ...

    def used(self, clip: Clip) -> None:
        """This clip is not opened any more."""
        ...

    def close(self) -> None:
        """End its threads, without waiting for a store that is away."""
        ...


@contextlib.contextmanager
def read_ahead(clips: Sequence[Clip]) -> Iterator[Opener]:
    """An opener of these clips, whose sound is read in this order: what holds many of them is read once."""
    kinds: dict[str, list[Clip]] = {}
    for clip in clips:
        kinds.setdefault(_kind(clip), []).append(clip)
    with contextlib.ExitStack() as stack:
        readers = {kind: READERS[kind](of_kind) for kind, of_kind in kinds.items()}
        for reader in readers.values():
            stack.callback(reader.close)
        pieces = Pieces(
            lambda clip: readers[_kind(clip)].open(clip),
            lambda clip: readers[_kind(clip)].used(clip),
            _recording,
        )
        stack.callback(pieces.close)
        yield Opener(pieces.open, pieces)


@contextlib.contextmanager
def _open_one(clip: Clip) -> Iterator[Any]:
    if _kind(clip) == "file":
        with remote_file.decoder_input(clip["uri"]) as stream:
            yield stream
        return
    with read_ahead([clip]) as opener, opener(clip) as found:
        yield found


open_clip = Opener(_open_one)  # of one clip alone


def _recording(clip: Clip) -> tuple[Any, ...]:
    """What several clips may be pieces of."""
    locator = clip.get("locator") or {}
    return clip["uri"], *(value for name, value in locator.items() if name != "decoded_from_s")


def _kind(clip: Clip) -> str:
    return (clip.get("locator") or {"kind": "file"})["kind"]


class Files:
    """Whole files, and ranges of bytes: AT_ONCE of a store's small ones are held or on their way, so memory holds
    AT_ONCE x SMALL. What could not be read, or is large or local, is opened when its turn comes."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        places = [_place(clip) for clip in clips if not storage.is_local(clip["uri"])]
        self._uses = Counter(places)  # that are still to come: pieces of one file are read from one copy
        self._waiting = deque(dict.fromkeys(places))
        self._files: dict[_Place, Future[bytes | None]] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE, "read-ahead") if places else None
        self._ask()

    @contextlib.contextmanager
    def open(self, clip: Clip) -> Iterator[Any]:
        place = _place(clip)
        with self._lock:
            future = self._files.get(place)
        try:
            content = None if future is None else future.result()
        except storage.UnreachableError:  # it was waited for
            raise
        except (OSError, ValueError):  # tried again, with the error of the decoder's own reading
            content = None
        try:
            if content is not None:
                yield io.BytesIO(content)
            else:
                with _opened(place) as stream:
                    yield stream
        finally:
            self.used(clip)

    def used(self, clip: Clip) -> None:
        place = _place(clip)
        with self._lock:
            self._uses[place] -= 1
            if self._uses[place] <= 0:
                self._files.pop(place, None)
        self._ask()

    def _ask(self) -> None:
        with self._lock:
            while self._pool is not None and self._waiting and len(self._files) < AT_ONCE:
                place = self._waiting.popleft()
                if self._uses[place] > 0:  # else it was opened before its turn
                    self._files[place] = self._pool.submit(storage.read_small, place[0], SMALL, self._stopped, place[1])

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        self._stopped.set()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


_Place = tuple[str, tuple[int, int] | None]  # uri; offset and size where it is not the whole file


def _place(clip: Clip) -> _Place:
    locator = clip.get("locator")
    return clip["uri"], None if locator is None or locator["kind"] == "file" else (locator["offset"], locator["size"])


@contextlib.contextmanager
def _opened(place: _Place) -> Iterator[Any]:
    uri, part = place
    with remote_file.decoder_input(uri) as stream:
        if part is None:
            yield stream
        elif part[1] <= SMALL:
            stream.seek(part[0])
            content = stream.read(part[1])
            if len(content) < part[1]:
                raise AudioError(f"read: the file ends {part[1] - len(content):,} bytes before this part of it does")
            yield io.BytesIO(content)
        else:
            yield io.BufferedReader(Window(stream, *part), remote_file.READ_AHEAD)


class Unreadable:
    """Clips of which the source already knew that they cannot be read, and why."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        pass

    def open(self, clip: Clip) -> AbstractContextManager[Any]:
        raise AudioError(f"read: {clip['locator']['name']}")

    def used(self, clip: Clip) -> None:
        pass

    def close(self) -> None:
        pass


READERS: dict[str, Callable[[Sequence[Clip]], Reader]] = {
    "file": Files,
    "bytes": Files,
    "parquet": ParquetRows,
    "hdf5": Hdf5Rows,
    "unreadable": Unreadable,
}
