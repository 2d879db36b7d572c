"""Decode any audio file to a mono float32 waveform at the rate asked for. Memory is bounded by the clip
wanted, never by what a header claims."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soundfile
import soxr

from ajepa import storage

SOUNDFILE_EXTENSIONS = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf"}
)
AV_EXTENSIONS = frozenset({".m4a", ".aac", ".webm", ".mp4", ".wma", ".mka", ".mkv", ".mov"})
AUDIO_EXTENSIONS = SOUNDFILE_EXTENSIONS | AV_EXTENSIONS

T = TypeVar("T")

BLOCK_FRAMES = 1 << 16  # frames decoded at a time, so that channels are mixed in small pieces
MAX_CHANNELS = 256
RATES = (1_000, 768_000)  # Hz, what a header may claim and be believed
MAX_AMPLITUDE = 1e12  # beyond any integer scaling; its mel power would overflow float32
PREROLL_S = 0.1  # AAC and Opus decode wrongly right after a seek
SOUNDFILE_ERRORS = (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError, RuntimeError, ValueError, TypeError)


class AudioError(Exception):
    """This file cannot become a clip. The message is "stage: reason" and ends up in the row's `error`."""


class Decoded(NamedTuple):
    """A clip's sound, and what it was made from."""

    waveform: np.ndarray  # [samples] float32, mono
    seconds: float  # of source audio
    source_rate: int  # of the file, in Hz


def decode(uri: str, sample_rate: int, start_s: float = 0.0, duration_s: float | None = None) -> Decoded:
    """Read one clip of an audio file.

    Args:
        uri: local path or URI of a file.
        sample_rate: rate of the result, in Hz.
        start_s: where the clip begins in the file, in seconds; the file is decoded by seeking there.
        duration_s: at most this many seconds; None reads to the end.

    Returns:
        The waveform, its channels averaged before resampling.

    Raises:
        AudioError: the file is missing, unreadable, empty, not audio, or holds non-finite samples.
        UnreachableError: its store does not answer, so nothing is known about the file.
    """

    read = _decode_av if _by_av(uri) else _decode_soundfile
    waveform, rate = _with_stream(uri, lambda stream: read(stream, start_s, duration_s))
    if not len(waveform):
        raise AudioError(f"decode: no samples at {start_s:g} s" if start_s else "decode: no samples")
    bad = int(np.count_nonzero(~(np.abs(waveform) <= MAX_AMPLITUDE)))
    if bad:
        raise AudioError(f"waveform: {bad} of {len(waveform)} samples are NaN, infinite or beyond {MAX_AMPLITUDE:g}")
    return Decoded(resample(waveform, rate, sample_rate), len(waveform) / rate, rate)


def decode_clip(clip: dict[str, Any], sample_rate: int, most: int) -> tuple[Decoded, bool]:
    """`decode` of a manifest row, at most so many samples of the result, and whether its audio was cut to them.

    Raises:
        AudioError, UnreachableError: as `decode`.
    """
    # One sample beyond the limit is enough to know that the audio goes on.
    wanted = min((most + 2) / sample_rate, clip["duration_s"] or np.inf)
    decoded = decode(clip["uri"], sample_rate, clip["start_s"], wanted)
    cut = len(decoded.waveform) > most
    waveform = np.ascontiguousarray(decoded.waveform[:most])
    return decoded._replace(waveform=waveform, seconds=min(decoded.seconds, most / sample_rate)), cut


def duration(uri: str) -> float:
    """Seconds of audio that a file's header claims; 0 where the container does not say.

    Raises:
        AudioError: the file is missing, unreadable, empty or not audio.
        UnreachableError: its store does not answer.
    """
    return _with_stream(uri, _duration_av if _by_av(uri) else _duration_soundfile)


def _with_stream(uri: str, work: Callable[[Any], T]) -> T:
    """Open the file and work on its stream, with errors as `decode` promises them."""

    def read() -> T:
        with storage.decoder_input(uri) as stream:
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


def _by_av(uri: str) -> bool:
    return PurePosixPath(uri).suffix.lower() in AV_EXTENSIONS


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling (soxr, high quality) of [samples] float32 from `rate` to `new_rate` Hz."""
    if rate == new_rate:
        return waveform
    return soxr.resample(waveform, rate, new_rate, quality="HQ")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_header(rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"decode: implausible sample rate {rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"decode: implausible channel count {channels}")


def _mix(block: np.ndarray) -> np.ndarray:
    """Mean over the channels of [frames, channels]. Channel by channel: a mean over so short an axis takes six times
    as long, which is more than decoding."""
    mono = block[:, 0].astype(np.float32)
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    return mono if block.shape[1] == 1 else mono / np.float32(block.shape[1])


def _file_of(stream: Any) -> Any:
    """The descriptor of a plain file: libsndfile then reads without calls back into Python."""
    return stream.fileno() if isinstance(stream, io.FileIO) else stream


def _duration_soundfile(stream: Any) -> float:
    try:
        with soundfile.SoundFile(_file_of(stream), closefd=False) as sound:
            _check_header(sound.samplerate, sound.channels)
            return sound.frames / sound.samplerate
    except SOUNDFILE_ERRORS as error:
        raise AudioError(f"decode: {_one_line(error)}") from error


def _decode_soundfile(stream: Any, start_s: float, duration_s: float | None) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(_file_of(stream), closefd=False) as sound:
            rate = sound.samplerate
            _check_header(rate, sound.channels)
            if start_s:
                sound.seek(min(round(start_s * rate), sound.frames))
            left = None if duration_s is None else round(duration_s * rate)
            blocks = []
            while left is None or left > 0:
                block = sound.read(
                    BLOCK_FRAMES if left is None else min(left, BLOCK_FRAMES), dtype="float32", always_2d=True
                )
                if not len(block):
                    break
                blocks.append(_mix(block))
                left = None if left is None else left - len(block)
    except SOUNDFILE_ERRORS as error:
        raise AudioError(f"decode: {_one_line(error)}") from error
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate


def has_av() -> bool:
    return importlib.util.find_spec("av") is not None


def _need_av() -> None:
    if not has_av():
        raise AudioError("decode: this container needs PyAV: pip install 'ajepa[av]'")


def _duration_av(stream: Any) -> float:
    _need_av()
    import av
    from av.error import FFmpegError

    try:
        with av.open(stream) as container:
            return max(0.0, (container.duration or 0) / av.time_base)
    except (FFmpegError, ValueError, TypeError) as error:
        raise AudioError(f"decode: {_one_line(error)}") from error


def _decode_av(stream: Any, start_s: float, duration_s: float | None) -> tuple[np.ndarray, int]:
    _need_av()
    import av
    from av.error import FFmpegError

    blocks: list[np.ndarray] = []
    try:
        with av.open(stream) as container:
            track = next((s for s in container.streams if s.type == "audio" and s.codec_context), None)
            if track is None:
                raise AudioError("decode: no audio track that can be decoded")
            rate, channels = track.codec_context.sample_rate, track.codec_context.channels
            _check_header(rate, channels)
            mixer = av.AudioResampler(format="flt")  # one plane: PyAV reads past the frame beyond 8 of them
            first, left = round(start_s * rate), None if duration_s is None else round(duration_s * rate)
            position: int | None = None
            if first:
                container.seek(int(max(0.0, start_s - PREROLL_S) * av.time_base), backward=True)
            for frame in container.decode(track):
                if position is None:  # after a seek the first frame says where it landed
                    position = round(float(frame.time or 0.0) * rate)
                for part in mixer.resample(frame):
                    mono = _mix(part.to_ndarray().reshape(-1, part.layout.nb_channels))
                    mono, position = mono[max(0, first - position) :], position + len(mono)
                    blocks.append(mono if left is None else mono[:left])
                    left = None if left is None else left - len(blocks[-1])
                if left is not None and left <= 0:
                    break
    except (FFmpegError, ValueError, TypeError) as error:
        raise AudioError(f"decode: {_one_line(error)}") from error
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32), rate
