"""Clips of a row group cut or repeated into crops, and the arrays of batches that are filled with them."""

import weakref
from collections import deque

import numpy as np

SPARE = 4  # arrays of batches kept for later ones


class BufferPool:
    """Arrays [count, *shape] float16 for batches, in memory of earlier ones that nobody holds any more, neither by a
    view nor by a tensor of it: the fresh pages of new memory cost more than filling it. Always the same count."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._spare: deque[memoryview] = deque(maxlen=SPARE)

    def take(self, count: int) -> np.ndarray:
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty((count, *self.shape), np.float16).data
        whole = np.frombuffer(memory, np.float16)  # the base of every view that is ever made of it
        weakref.finalize(whole, self._spare.append, memory).atexit = False
        return whole.reshape(count, *self.shape)


def fill_crop(log_mel: np.ndarray, valid: int, place: float, repeat: bool, out: np.ndarray) -> int:
    """Fill out [n_mels, crop] from a clip [n_mels, frames]; the valid frames that are then in it.

    Args:
        valid: frames of the clip that hold sound; of a longer clip than the crop only those are cut from.
        place: in [0, 1), where the crop begins.
        repeat: repeat a shorter clip cyclically; else its padding stays.
    """
    crop = out.shape[1]
    if valid >= crop:
        start = int(place * (valid - crop + 1))
        out[:] = log_mel[:, start : start + crop]
        return crop
    if not repeat:
        out[:] = log_mel[:, :crop]
        return valid
    start = int(place * valid)
    out[:, : valid - start] = log_mel[:, start:valid]
    out[:, valid - start : valid] = log_mel[:, :start]
    while valid < crop:  # what is there is a whole number of periods
        more = min(valid, crop - valid)
        out[:, valid : valid + more] = out[:, :more]
        valid += more
    return crop
