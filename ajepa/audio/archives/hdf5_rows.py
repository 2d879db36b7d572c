"""Sound in the rows of HDF5 arrays: samples (PANNs' packs), or whole files as bytes (PaSST's)."""

import contextlib
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ajepa import storage
from ajepa.audio.errors import AudioError, check_header
from ajepa.audio.remote_file import RemoteFile, decoder_input
from ajepa.audio.streams import Samples
from ajepa.errors import one_line

INT16 = 32767.0  # what PANNs' packs of integers were multiplied by


class Hdf5Error(Exception):
    """What h5py says of a file: no OSError, which a store's would be, and that is asked again."""


class Hdf5Rows:
    """Reads rows whose locator names the array; one file is open at a time."""

    def __init__(self, clips: Sequence[Mapping[str, Any]]) -> None:
        self._lock = threading.Lock()
        self._uri, self._stack = "", contextlib.ExitStack()
        self._file: Any = None
        self._raw: RemoteFile | None = None

    @contextlib.contextmanager
    def open(self, clip: Mapping[str, Any]) -> Iterator[Any]:
        name, row = clip["locator"]["name"], clip["locator"]["row"]
        with self._lock:
            try:
                file = self._opened(clip["uri"])
            except Hdf5Error as error:
                raise AudioError(f"read: {error}") from error
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
        with self._lock, contextlib.suppress(OSError, Hdf5Error):  # of a store that is away; the clips were read
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
def opened(uri: str) -> Iterator[tuple[Any, RemoteFile | None]]:
    """An HDF5 file, and what it is read by from a store. Where that fails h5py reads zeros: the error stands there, and
    comes out of the block, whatever h5py made of them.

    Raises:
        Hdf5Error: it is damaged, or no HDF5 file.
        OSError: it is not there, or its store does not answer.
    """
    import h5py

    with decoder_input(uri) as stream:
        is_local = storage.is_local(uri)
        try:
            with h5py.File(storage.absolute(uri) if is_local else stream, "r") as file:
                yield file, None if is_local else stream.raw
        except (OSError, KeyError, RuntimeError) as error:
            raise Hdf5Error(one_line(error)[:200]) from error
