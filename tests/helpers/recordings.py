"""Recordings as recorders, browsers, pipes and people leave them: without a length, with a wrong one, put together, or
under another name. Each holds a rising tone, so that every moment sounds different."""

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

SECONDS = 12
QUALITY = {"global_quality": "250", "flags": "+qscale"}  # a bit rate that follows the sound


def rising(rate: int, seconds: float = SECONDS, noisy: bool = False) -> np.ndarray:
    """Float32 from 200 Hz to 2 kHz, with noise in the first third on demand: a bit rate guessed there is too high."""
    t = np.arange(round(rate * seconds)) / rate
    noise = 0.2 * np.random.default_rng(0).standard_normal(len(t)) * (noisy and t < seconds / 3)
    return (0.4 * np.sin(2 * np.pi * (200 * t + 900 / seconds * t * t)) + noise).astype(np.float32)


def encode(path: Path, codec: str, rate: int, form: str, codec_options: dict | None = None, **options: str) -> None:
    """Write the rising tone with PyAV in a container."""
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        stream.layout = "mono"
        tone = rising(rate, noisy=codec_options is QUALITY)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        fifo = av.AudioFifo()
        for part in av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate).resample(frame):
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size) or fifo.read(size, partial=True)) is not None:
            for packet in stream.encode(part):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def flac_without_total(path: Path) -> None:
    soundfile.write(path, rising(16_000), 16_000, subtype="PCM_16", format="FLAC")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)


def wav_of_size(said: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, rising(16_000), 16_000, subtype="PCM_16", format="WAV")
        data = bytearray(path.read_bytes())
        at = data.index(b"data") + 4
        data[at : at + 4] = struct.pack("<I", said)
        path.write_bytes(data)

    return write


def au_of_size(said: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, rising(16_000), 16_000, subtype="PCM_16", format="AU")
        data = bytearray(path.read_bytes())
        data[8:12] = struct.pack(">I", said)
        path.write_bytes(data)

    return write


def chained(subtype: str, rate: int, same_serial: bool = False) -> Callable[[Path], None]:
    """Three Ogg recordings one after the other, each with a serial number of its own or all with the same."""

    def write(path: Path) -> None:
        third = len(rising(rate)) // 3
        whole = b""
        for i in range(3):
            buffer = io.BytesIO()
            part = rising(rate)[i * third : (i + 1) * third]
            soundfile.write(buffer, part, rate, format="OGG", subtype=subtype)
            whole += renumber(buffer.getvalue(), 7 if same_serial else 1000 + i)
        path.write_bytes(whole)

    return write


def renumber(data: bytes, serial: int) -> bytes:
    """The pages of an Ogg file under another serial number."""
    result, at = b"", 0
    while at < len(data):
        size = 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        page = bytearray(data[at : at + size])
        page[14:18], page[22:26] = struct.pack("<I", serial), bytes(4)
        page[22:26] = struct.pack("<I", checksum(page))
        result, at = result + bytes(page), at + size
    return result


def checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533: not reflected, from 0."""
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = ((register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return register


def repeated(form: str, rate: int, **options) -> Callable[[Path], None]:
    """Two copies of an MP3 file behind each other, as `cat` makes them."""

    def write(path: Path) -> None:
        encode(path, "libmp3lame", rate, form, **options)
        path.write_bytes(path.read_bytes() * 2)

    return write


# Name: how it is written, seconds, and by how many they may differ for the codec's frames.
RECORDINGS: dict[str, tuple[Callable[[Path], None], float, float]] = {
    "live.webm": (lambda p: encode(p, "libopus", 48_000, "webm", live="1"), SECONDS, 0.03),
    "live.mkv": (lambda p: encode(p, "aac", 44_100, "matroska", live="1"), SECONDS, 0.06),
    "plain.webm": (lambda p: encode(p, "libopus", 48_000, "webm"), SECONDS, 0.03),
    "loud_first.aac": (lambda p: encode(p, "aac", 44_100, "adts", QUALITY), SECONDS, 0.06),
    "stream.flac": (flac_without_total, SECONDS, 0),
    "a.wma": (lambda p: encode(p, "wmav2", 44_100, "asf", {"b": "64000"}), SECONDS, 0.1),
    "a.m4a": (lambda p: encode(p, "aac", 44_100, "ipod"), SECONDS, 0.06),
    "a.mp4": (lambda p: encode(p, "alac", 44_100, "mp4"), SECONDS, 0),
    "fragments.mp4": (
        lambda p: encode(p, "aac", 44_100, "mp4", movflags="frag_keyframe+empty_moov+default_base_moof"), SECONDS, 0.06,
    ),
    "a.mp3": (lambda p: encode(p, "libmp3lame", 44_100, "mp3"), SECONDS, 0.06),
    "no_length.mp3": (lambda p: encode(p, "libmp3lame", 44_100, "mp3", QUALITY, write_xing="0"), SECONDS, 0.06),
    "no_length_constant.mp3": (lambda p: encode(p, "libmp3lame", 44_100, "mp3", write_xing="0"), SECONDS, 0.06),
    "two.mp3": (repeated("mp3", 44_100), 2 * SECONDS, 0.15),
    "two_no_length.mp3": (repeated("mp3", 44_100, codec_options=QUALITY, write_xing="0"), 2 * SECONDS, 0.15),
    "chained.ogg": (chained("VORBIS", 16_000), SECONDS, 0.05),
    "chained.opus": (chained("OPUS", 48_000), SECONDS, 0.1),
    "chained_same_number.ogg": (chained("VORBIS", 16_000, same_serial=True), SECONDS, 0.05),
    "a.ogg": (lambda p: soundfile.write(p, rising(16_000), 16_000, format="OGG", subtype="VORBIS"), SECONDS, 0),
    "zero.wav": (wav_of_size(0), SECONDS, 0),
    "unknown.wav": (wav_of_size(0xFFFF_FFFF), SECONDS, 0),
    "zero.au": (au_of_size(0), SECONDS, 0),
    "unknown.au": (au_of_size(0xFFFF_FFFF), SECONDS, 0),
    "m4a_named.mp3": (lambda p: encode(p, "aac", 44_100, "ipod"), SECONDS, 0.06),
    "m4a_named.wav": (lambda p: encode(p, "aac", 44_100, "ipod"), SECONDS, 0.06),
    "adts_named.flac": (lambda p: encode(p, "aac", 44_100, "adts"), SECONDS, 0.06),
    "webm_named.opus": (lambda p: encode(p, "libopus", 48_000, "webm"), SECONDS, 0.03),
    "mkv_named.ogg": (lambda p: encode(p, "flac", 16_000, "matroska"), SECONDS, 0.01),
    "flac_in_ogg.oga": (lambda p: encode(p, "flac", 16_000, "ogg"), SECONDS, 0.01),
    "wma_named.wav": (lambda p: encode(p, "wmav2", 44_100, "asf", {"b": "64000"}), SECONDS, 0.1),
    "wav_named.m4a": (lambda p: soundfile.write(p, rising(16_000), 16_000, format="WAV"), SECONDS, 0),
    "flac_named.mp4": (lambda p: soundfile.write(p, rising(16_000), 16_000, format="FLAC"), SECONDS, 0),
    "amr_has_no_name_here.wav": (lambda p: encode(p, "wavpack", 16_000, "wv"), SECONDS, 0.01),
}  # fmt: skip
