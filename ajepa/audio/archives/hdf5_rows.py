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
        self._raw: storage.RemoteFile | None = None

    @contextlib.contextmanager
    def open(self, clip: Mapping[str, Any]) -> Iterator[Any]:
        name, row = clip["locator"]["name"], clip["locator"]["row"]
        with self._lock:
            file = self._opened(clip["uri"])
            try:
                values = file[name][row]
                rate = 0 if values.dtype == np.uint8 else sample_rate(file)
            except (OSError, KeyError, ValueError, IndexError, RuntimeError) as error:
                self._let_go()  # what its store said comes out here, and is no fault of the row
                raise AudioError(f"read: row {row} of {name!r}: {one_line(error)[:200]}") from error
            if self._raw is not None and self._raw.error is not None:  # h5py took what did not come for zeros
                self._let_go()
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
        with self._lock, contextlib.suppress(OSError):  # of a store that is away; the clips were read
            self._let_go()

    def _opened(self, uri: str) -> Any:
        if uri != self._uri:
            self._let_go()
            self._file, self._raw = self._stack.enter_context(opened(uri))
            self._uri = uri
        return self._file

    def _let_go(self) -> None:
        self._uri, self._file, self._raw = "", None, None
        self._stack.close()


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
def opened(uri: str) -> Iterator[tuple[Any, storage.RemoteFile | None]]:
    """An HDF5 file, and what it is read by from a store. Where that fails h5py reads zeros: the error stands there, and
    comes out of the block.

    Raises:
        OSError: it cannot be read.
    """
    import h5py

    if storage.is_local(uri):
        with h5py.File(storage.absolute(uri), "r") as file:
            yield file, None
        return
    with storage.decoder_input(uri) as stream, h5py.File(stream, "r") as file:
        yield file, stream.raw
