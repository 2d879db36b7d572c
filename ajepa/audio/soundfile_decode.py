"""Decoding by libsndfile: what most sounds are held in."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from ajepa.audio.collector import Collector
from ajepa.audio.errors import AudioError, check_header, mix
from ajepa.errors import one_line

BLOCK_FRAMES = 1 << 16  # frames decoded at a time, so that channels are mixed in small pieces
PREROLL_S = 0.5  # of an MP3 file: its frames refer to bytes of those before
TOLERANCE_S = 0.2  # an MP3 encoder's delay and padding, and a frame that is cut off
ERRORS = (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError, RuntimeError, ValueError, TypeError)


class UnreadError(AudioError):
    """libsndfile does not know what this is, or does not read all of it."""


class OpenSound:
    """A file that libsndfile has opened, read from one place on.

    Args:
        seconds: of the whole file, where they were counted.
        from_s: decoded on and on from here, not from where a clip begins.
        preroll_s: decoded before a place that was sought, and thrown away.
    """

    def __init__(
        self, sound: soundfile.SoundFile, seconds: float | None, from_s: float | None, preroll_s: float
    ) -> None:
        self.sound, self.seconds, self.from_s, self._preroll_s = sound, seconds, from_s, preroll_s
        self.at: int | None = None  # the frame that comes next; None before anything was sought
        self._rest = np.zeros(0, np.float32)  # decoded and not asked for yet

    def blocks(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        """[samples] mono float32 from a frame on, so many or to the end, one block after the other.

        Blocks are of one size, so that what an MP3 decoder gives does not depend, in its last bits, on the clips.
        """
        if self.at is None:
            self._seek(first if self.from_s is None else round(self.from_s * self.sound.samplerate))
        while (count is None or count > 0) and (len(self._rest) or self._read_block()):
            skipped = min(first - self._place, len(self._rest))
            part = self._rest[skipped:] if count is None else self._rest[skipped : skipped + count]
            self._rest = self._rest[skipped + len(part) :]
            self.at = self._place + skipped + len(part)
            if len(part):
                first = self.at
                count = None if count is None else count - len(part)
                yield part

    @property
    def _place(self) -> int:
        return self.at or 0

    def _seek(self, frame: int) -> None:
        self.at = max(0, min(frame, self.sound.frames) - round(self._preroll_s * self.sound.samplerate))
        if self.at:
            self.sound.seek(self.at)
        # soundfile seeks after every read of a file that can be sought: of an MP3 file with a variable bit rate the
        # first milliseconds of each block were zeros.
        self.sound._info.seekable = 0

    def _read_block(self) -> bool:
        # No further than the header says: what follows may be tags, which a decoder takes for damage.
        left = self.sound.frames - self._place
        block = self.sound.read(min(BLOCK_FRAMES, max(0, left)), dtype="float32", always_2d=True)
        self._rest = mix(block) if len(block) else self._rest
        return bool(len(block))


@contextlib.contextmanager
def opened(
    stream: Any, seconds: float | None = None, from_s: float | None = None, preroll_s: float = 0.0
) -> Iterator[OpenSound]:
    """Open a seekable stream; it is closed by whoever opened it.

    Args:
        seconds, from_s, preroll_s: of the result.

    Raises:
        UnreadError: libsndfile does not know what it is.
        AudioError: its header is not plausible, or reading failed.
    """
    try:
        sound = soundfile.SoundFile(_file_of(stream), closefd=False)
    except ERRORS as error:
        raise UnreadError(f"decode: {_reason(error)}") from error
    try:
        with sound:
            check_header(sound.samplerate, sound.channels)
            yield OpenSound(sound, seconds, from_s, preroll_s)
    except ERRORS as error:
        raise AudioError(f"decode: {_reason(error)}") from error


def decode(file: OpenSound, start_s: float, duration_s: float | None, sample_rate: int) -> Collector:
    """The mono waveform from a time on, for a rate in Hz.

    Raises:
        UnreadError: fewer samples come than the file has there.
    """
    rate = file.sound.samplerate
    found = Collector(rate, sample_rate)
    for block in file.blocks(round(start_s * rate), None if duration_s is None else round(duration_s * rate)):
        found.add(block)
    due = file.seconds - start_s if file.seconds is not None else 0.0
    due = due if duration_s is None else min(due, duration_s)
    if found.samples / rate < due - TOLERANCE_S:
        raise UnreadError(f"decode: {found.samples / rate:.2f} s were read where the file has {due:.2f} s")
    return found


def duration(file: OpenSound) -> float:
    """Seconds of sound, as the header says."""
    return float(file.sound.frames / file.sound.samplerate)


def _file_of(stream: Any) -> Any:
    """The descriptor of a plain file: libsndfile then reads without calls back into Python."""
    return stream.fileno() if isinstance(stream, io.FileIO) else stream


def _reason(error: BaseException) -> str:
    """What libsndfile says, without the names and numbers of the process."""
    return str(getattr(error, "error_string", None) or one_line(error)[:300])
