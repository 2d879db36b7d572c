"""Sound in the rows of HDF5 arrays: samples (PANNs' packs), or whole files as bytes (PaSST's)."""

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ajepa import storage
from ajepa.audio.errors import AudioError, check_header
from ajepa.audio.streams import Samples
from ajepa.errors import one_line

INT16 = 32767.0  # what PANNs' packs of integers were multiplied by


class Hdf5Rows:
    """Reads rows whose locator names the array; one file is open at a time."""

    def __init__(self, clips: Sequence[Mapping[str, Any]]) -> None:
        self._lock = threading.Lock()
        self._uri, self._stack = "", contextlib.ExitStack()
        self._file: Any = None

    @contextlib.contextmanager
    def open(self, clip: Mapping[str, Any]) -> Iterator[Any]:
        name, row = clip["locator"]["name"], clip["locator"]["row"]
        with self._lock:
            file = self._opened(clip["uri"])
            try:
                values = file[name][row]
                rate = 0 if values.dtype == np.uint8 else sample_rate(file)
            except (OSError, KeyError, ValueError, IndexError, RuntimeError) as error:
                raise AudioError(f"read: row {row} of {name!r}: {one_line(error)[:200]}") from error
        if values.dtype == np.uint8:
            yield io.BytesIO(values.tobytes())
            return
        if not np.any(values):
            raise AudioError("waveform: a row of zeros: this clip was missing when the file was made")
        waveform = values / np.float32(INT16) if values.dtype == np.int16 else values
        yield Samples(np.ascontiguousarray(waveform, np.float32), rate)

    def used(self, clip: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        with self._lock:
            self._stack.close()

    def _opened(self, uri: str) -> Any:
        if uri != self._uri:
            self._stack.close()
            self._uri, self._file = "", None
            self._file = self._stack.enter_context(opened(uri))
            self._uri = uri
        return self._file


def sample_rate(file: Any) -> int:
    """Of a file's samples, in Hz.

    Raises:
        AudioError, TypeError, ValueError: it is no plausible rate.
    """
    rate = np.asarray(file.attrs["sample_rate"])
    if rate.size != 1:
        raise ValueError(f"{rate.size} values")
    found = int(rate.reshape(-1)[0])
    check_header(found, 1)
    return found


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Any]:
    """An HDF5 file.

    Raises:
        OSError: it cannot be read.
    """
    import h5py

    if storage.is_local(uri):
        with h5py.File(storage.absolute(uri), "r") as file:
            yield file
        return
    with storage.open_input(uri) as stream, h5py.File(io.BufferedReader(_Raw(stream), storage.READ_AHEAD), "r") as file:
        yield file


class _Raw(io.RawIOBase):
    """A store's file as h5py reads it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._stream.seek(offset, whence)
        return int(self._stream.tell())

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
