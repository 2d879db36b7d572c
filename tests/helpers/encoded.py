"""Half a second of noise in the containers that clips come in."""

from fractions import Fraction

import numpy as np
import pytest

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000)


def encoded(path, write_wav):
    if path.suffix != ".m4a":
        write_wav(path, NOISE)
        return path.read_bytes()
    encode_av(path, "aac", NOISE.astype(np.float32)[None], RATE)
    return path.read_bytes()


def encode_av(path, codec, waveform, rate, layout="mono"):
    """Write [channels, samples] with PyAV; the extension names the container."""
    av = pytest.importorskip("av")
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)
