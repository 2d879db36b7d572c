"""Decode any audio file to a mono float32 waveform at the rate asked for. Memory is bounded by the clip
wanted, never by what a header claims."""

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ajepa import storage
from ajepa.audio import av_decode, soundfile_decode
from ajepa.audio.collector import Collector
from ajepa.audio.containers import MP3, Container, inspect, needs_av
from ajepa.audio.errors import AudioError
from ajepa.audio.read_ahead import Opener, open_clip
from ajepa.audio.remote_file import decoder_input
from ajepa.audio.soundfile_decode import OpenSound, UnreadError
from ajepa.audio.soundfile_decode import decode as decode_sound
from ajepa.audio.soundfile_decode import duration as duration_of_sound
from ajepa.audio.streams import Patched, Samples, size_of
from ajepa.errors import one_line

SOUNDFILE_EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf"}
)
AV_EXTENSIONS = frozenset({".m4a", ".aac", ".webm", ".mp4", ".wma", ".mka", ".mkv", ".mov"})
AUDIO_EXTENSIONS = SOUNDFILE_EXTENSIONS | AV_EXTENSIONS

T = TypeVar("T")
Opened = Callable[[], contextlib.AbstractContextManager[Any]]


class Decoded(NamedTuple):
    """A clip's sound, and what it was made from."""

    waveform: np.ndarray  # [samples] float32, mono
    seconds: float  # of source audio
    source_rate: int  # of the file, in Hz


def decode(
    uri: str,
    sample_rate: int,
    start_s: float = 0.0,
    duration_s: float | None = None,
    opened: Opened | None = None,
    member: str = "",
    from_s: float | None = None,
) -> Decoded:
    """Read one clip of an audio file.

    Args:
        uri: local path or URI of a file.
        sample_rate: rate of the result, in Hz.
        start_s: where the clip begins in the file, in seconds; the file is decoded by seeking there.
        duration_s: at most this many seconds; None reads to the end.
        opened: gives the file's stream, or its samples; by default it is opened at its uri.
        member: names the part of the file that `opened` gives.
        from_s: where decoding begins of a file that is decoded on and on, see `pieces`.

    Returns:
        The waveform, its channels averaged before resampling.

    Raises:
        AudioError: the file is missing, unreadable, empty, not audio, or holds non-finite samples.
        UnreachableError: its store does not answer, so nothing is known about the file.
    """

    def by_soundfile(sound: OpenSound) -> Collector:
        return decode_sound(sound, start_s, duration_s, sample_rate)

    def read(stream: Any) -> Collector:
        if isinstance(stream, Samples):
            first = round(start_s * stream.rate)
            last = None if duration_s is None else first + round(duration_s * stream.rate)
            found = Collector(stream.rate, sample_rate)
            found.add(stream.waveform[first:last])
            return found
        if isinstance(stream, OpenSound):
            return by_soundfile(stream)
        return _by_the_right_one(
            (uri, member),
            stream,
            lambda found, source: _by_soundfile(found, source, by_soundfile, from_s),
            lambda found, source: av_decode.decode(source, found, start_s, duration_s, sample_rate),
        )

    found = _with_stream(uri, read, opened)
    if not found.samples:
        raise AudioError(f"decode: no samples at {start_s:g} s" if start_s else "decode: no samples")
    return Decoded(found.waveform(), found.samples / found.rate, found.rate)


def decode_clip(clip: dict[str, Any], sample_rate: int, most: int, opener: Opener = open_clip) -> tuple[Decoded, bool]:
    """`decode` of a manifest row, at most so many samples of the result, and whether its audio was cut to them.

    Raises:
        AudioError, UnreachableError: as `decode`.
    """
    start, length = clip["start_s"], clip["duration_s"]
    if not 0 <= start < np.inf:
        raise AudioError(f"decode: a start of {start:g} s")
    if length is not None and not 0 < length < np.inf:
        raise AudioError(f"decode: a duration of {length:g} s")
    # One sample beyond the limit is enough to know that the audio goes on.
    wanted = min((most + 2) / sample_rate, np.inf if length is None else length)

    def read() -> Decoded:
        return decode(clip["uri"], sample_rate, start, wanted, lambda: opener(clip), _member(clip), from_s)

    from_s = (clip.get("locator") or {}).get("decoded_from_s")
    try:
        decoded = read()
    except UnreadError:
        if opener.pieces is None or not opener.pieces.is_unfit(clip):
            raise
        decoded = read()  # as a file of its own, which PyAV may read
    cut = len(decoded.waveform) > most
    waveform = np.ascontiguousarray(decoded.waveform[:most])
    return decoded._replace(waveform=waveform, seconds=min(decoded.seconds, most / sample_rate)), cut


def clip_duration(clip: dict[str, Any], opener: Opener = open_clip) -> float:
    """`duration` of the recording of a manifest row."""
    return duration(clip["uri"], lambda: opener(clip), _member(clip))


def _member(clip: dict[str, Any]) -> str:
    """A name of the part of a file that a clip is."""
    locator = clip.get("locator")
    return "" if locator is None else " ".join(str(v) for k, v in locator.items() if k != "decoded_from_s")


def duration(uri: str, opened: Opened | None = None, member: str = "") -> float:
    """Seconds of audio in a file: what its header says where that can be believed, else counted.

    Args:
        opened, member: as of `decode`.

    Raises:
        AudioError: the file is missing, unreadable, empty or not audio.
        UnreachableError: its store does not answer.
    """

    def read(stream: Any) -> float:
        if isinstance(stream, Samples):
            return len(stream.waveform) / stream.rate
        return _by_the_right_one(
            (uri, member),
            stream,
            lambda found, source: (
                _by_soundfile(found, source, duration_of_sound) if found.seconds is None else found.seconds
            ),
            lambda found, source: av_decode.duration(source, found),
        )

    return _with_stream(uri, read, opened)


_known: dict[tuple[str, str, int], Container] = {}  # files looked at: pieces of one come one after the other
MOST_KNOWN = 1000


def _inspected(place: tuple[str, str], stream: Any) -> Container:
    key = *place, size_of(stream)
    if key not in _known:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = inspect(stream)
    stream.seek(0)
    return _known[key]


def _by_the_right_one(
    place: tuple[str, str],
    stream: Any,
    by_soundfile: Callable[[Container, Any], T],
    by_av: Callable[[Container, Any], T],
) -> T:
    """Let libsndfile read the stream, or PyAV what libsndfile does not read to its end. The content decides, not the
    name.

    Raises:
        AudioError: neither can, or PyAV is needed and not installed.
    """
    found = _inspected(place, stream)
    if found.refused:
        raise AudioError(f"decode: {found.refused}")
    source = Patched(stream, found.start, found.patches) if found.start or found.patches else stream
    if needs_av(found):
        if not has_av():
            why = f" and {found.doubt}" if found.doubt else ""
            raise AudioError(f"decode: this is {found.name}{why}: PyAV reads it, pip install 'ajepa[av]'")
        return by_av(found, source)
    try:
        return by_soundfile(found, source)
    except UnreadError as error:
        if not has_av():
            raise
        source.seek(0)
        try:
            return by_av(found, source)
        except AudioError:
            raise error from None


def _by_soundfile(found: Container, source: Any, work: Callable[[OpenSound], T], from_s: float | None = None) -> T:
    is_mp3 = found.name == MP3
    preroll_s = soundfile_decode.PREROLL_S if is_mp3 else 0.0
    with soundfile_decode.opened(source, found.seconds, from_s if is_mp3 else None, preroll_s) as sound:
        return work(sound)


def _with_stream(uri: str, work: Callable[[Any], T], opened: Opened | None) -> T:
    """Open the file and work on its stream or samples, with errors as `decode` promises them."""

    def read() -> T:
        with opened() if opened is not None else decoder_input(uri) as stream:
            if isinstance(stream, Samples | OpenSound):
                return work(stream)
            if not stream.read(1):
                raise AudioError("decode: empty file (0 bytes)")
            stream.seek(0)
            return work(stream)

    try:
        return storage.with_retries(uri, read)
    except storage.UnreachableError:
        raise
    except (OSError, ValueError) as error:  # missing file, no permission, unknown scheme
        raise AudioError(f"read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return one_line(error)[:300]


def has_av() -> bool:
    return importlib.util.find_spec("av") is not None
