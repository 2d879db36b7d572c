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
    av = pytest.importorskip("av")
    frame = av.AudioFrame.from_ndarray(NOISE.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()
