"""Decoding by PyAV (FFmpeg): the containers that libsndfile does not read, or not to their end."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ajepa.audio.collector import Collector
from ajepa.audio.containers import FORMATS, MP3, MP4, Container
from ajepa.audio.errors import AudioError, check_header, mix

JOINTS = 100  # recordings that may follow one another in an MP3 file
PREROLL_S = 0.1  # AAC decodes wrongly right after a seek
# Demuxers for what has no name here. Others may open further files, or the network, that the bytes ask for.
KNOWN = (
    "mov,mp4,m4a,matroska,webm,asf,aac,ogg,flac,mp3,wav,w64,aiff,caf,au,ac3,eac3,amr,ape,wv,tta,mpc,mpc8,tak,dts,dsf,"
    "mpegts,mpeg,avi,flv,rm,voc,xwma,latm,loas,gsm,shn,qcp,iff,oma,sox"
)


def decode(stream: Any, container: Container, start_s: float, duration_s: float | None, sample_rate: int) -> Collector:
    """The mono waveform from a time on, for a rate in Hz. Where the container's clock is too coarse to say where a
    seek lands, the file is decoded from its beginning.

    Raises:
        AudioError: FFmpeg cannot read it.
    """
    found: Collector | None = None
    first, position, left = 0, 0, None
    for block, rate, at in _blocks(stream, container, start_s):
        if found is None:
            found, position = Collector(rate, sample_rate), at
            first, left = round(start_s * rate), None if duration_s is None else round(duration_s * rate)
        part = block[max(0, first - position) :][:left]
        position += len(block)
        found.add(part)
        left = None if left is None else left - len(part)
        if left is not None and left <= 0:
            break
    return found or Collector(1, sample_rate)


def duration(stream: Any, found: Container) -> float:
    """Seconds of sound: those of an MP4 file as it says, of others as they are counted, which decodes them.

    Raises:
        AudioError: FFmpeg cannot read it.
    """
    seconds = 0.0
    for block, rate, _ in _blocks(stream, found, 0.0, headers=True):
        if isinstance(block, float):
            return block
        seconds += len(block) / rate
    return seconds


def _blocks(stream: Any, found: Container, start_s: float, headers: bool = False) -> Iterator[tuple[Any, int, int]]:
    """Mono blocks with their rate and the number of the first sample of the first one.

    Args:
        start_s: the first block may begin anywhere before it.
        headers: give one float instead, the duration, where the header can be believed.
    """
    import av
    from av.error import FFmpegError

    name = FORMATS.get(found.name)
    try:
        with av.open(stream, format=name, options={} if name else {"format_whitelist": KNOWN}) as container:
            track = next((s for s in container.streams if s.type == "audio" and s.codec_context), None)
            if track is None:
                raise AudioError("decode: no audio track that can be decoded")
            clock = track.codec_context.sample_rate
            check_header(clock, track.codec_context.channels)
            exact = found.name == MP4 and not found.doubt and track.time_base == Fraction(1, clock)
            if headers and exact and track.duration:
                yield float(track.duration * track.time_base), clock, 0
                return
            begin = track.start_time or 0
            sought = exact and start_s > PREROLL_S
            if sought:
                container.seek(int((start_s - PREROLL_S) * av.time_base), backward=True)
            mixer: Any = None
            shape: tuple[Any, ...] = ()
            rate = at = 0
            for frame in _frames(container, track, JOINTS if found.name == MP3 and found.doubt else 0):
                if mixer is None:
                    rate = frame.sample_rate  # of HE-AAC it is not the container's
                    check_header(rate, frame.layout.nb_channels)
                    if sought:
                        at = round(float((frame.pts - begin) * track.time_base) * rate)
                before, shape = shape, (frame.format.name, frame.layout.name, frame.sample_rate)
                if shape != before:
                    # One plane: PyAV reads past the frame beyond 8 of them. A later recording may have another rate.
                    mixer = av.AudioResampler(format="flt", rate=rate)
                for part in mixer.resample(frame):
                    yield mix(part.to_ndarray().reshape(-1, part.layout.nb_channels)), rate, at
    except (FFmpegError, ValueError, TypeError) as error:
        raise AudioError(f"decode: {found.name or 'unknown container'}: {reason(error)}") from error


def _frames(container: Any, track: Any, forgiven: int) -> Iterator[Any]:
    """All frames of a track. So many packets may be unreadable: where MP3 recordings were put together, the first frame
    of the next one refers to bytes that it does not have."""
    from av.error import InvalidDataError

    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except InvalidDataError:
            forgiven -= 1
            if forgiven < 0:
                raise
            continue
        yield from frames


def reason(error: BaseException) -> str:
    """What FFmpeg says, without the names and numbers of the process."""
    return str(getattr(error, "strerror", None) or error).partition("\n")[0]
