"""The decoded blocks of a clip, put together at the rate that is wanted."""

import numpy as np
import soxr

from ajepa.audio.errors import AudioError

MAX_AMPLITUDE = 1e12  # beyond any integer scaling; its mel power would overflow float32
QUALITY = "HQ"
AT_ONCE = 1 << 22  # samples resampled at a time, and by which a waveform grows


class Collector:
    """Mono blocks [samples] float32 of one rate to a waveform at another, band-limited (soxr, high quality).

    Memory holds the result and AT_ONCE samples: a recording may last hours. What comes out does not depend on the
    blocks, nor on AT_ONCE: soxr gives the same samples in parts.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        self.rate, self.new_rate = rate, new_rate
        self.samples = 0  # that were added
        self._bad = 0
        self._blocks: list[np.ndarray] = []  # that are not resampled yet
        self._held = 0
        self._stream: soxr.ResampleStream | None = None
        self._made, self._size = np.empty(0, np.float32), 0

    def add(self, block: np.ndarray) -> None:
        self.samples += len(block)
        self._bad += int(np.count_nonzero(~(np.abs(block) <= MAX_AMPLITUDE)))
        self._blocks.append(block)
        self._held += len(block)
        if self._held >= AT_ONCE:
            self._take(last=False)

    def waveform(self) -> np.ndarray:
        """[samples] float32 at the new rate; there are no more blocks.

        Raises:
            AudioError: some are NaN, infinite or beyond MAX_AMPLITUDE.
        """
        if self._bad:
            raise AudioError(
                f"waveform: {self._bad} of {self.samples} samples are NaN, infinite or beyond {MAX_AMPLITUDE:g}"
            )
        if not self._size:
            return resample(self._joined(), self.rate, self.new_rate)
        self._take(last=True)
        self._made.resize(self._size, refcheck=False)
        return self._made

    def _take(self, last: bool) -> None:
        part = self._joined()
        if self.rate != self.new_rate:
            self._stream = self._stream or soxr.ResampleStream(self.rate, self.new_rate, 1, quality=QUALITY)
            part = self._stream.resample_chunk(part, last=last)
        end = self._size + len(part)
        if end > len(self._made):  # in place: a copy would need twice the memory
            self._made.resize(end + AT_ONCE, refcheck=False)
        self._made[self._size : end] = part
        self._size = end

    def _joined(self) -> np.ndarray:
        blocks, self._blocks, self._held = self._blocks, [], 0
        return blocks[0] if len(blocks) == 1 else np.concatenate([*blocks, np.empty(0, np.float32)])


def resample(waveform: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Band-limited resampling (soxr, high quality) of [samples] float32 from `rate` to `new_rate` Hz."""
    if rate == new_rate:
        return waveform
    return soxr.resample(waveform, rate, new_rate, quality=QUALITY)
