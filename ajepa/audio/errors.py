"""What both decoders share: the error that makes a bad row, plausible headers, and the mean of channels."""

import numpy as np

MAX_CHANNELS = 256
RATES = (1_000, 768_000)  # Hz, what a header may claim and be believed


class AudioError(Exception):
    """This file cannot become a clip. The message is "stage: reason" and ends up in the row's `error`; it depends on
    the file alone, not on the process."""


def check_header(rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"decode: implausible sample rate {rate} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"decode: implausible channel count {channels}")


def mix(block: np.ndarray) -> np.ndarray:
    """Mean over the channels of [frames, channels]. Channel by channel: a mean over so short an axis takes six times
    as long, which is more than decoding."""
    mono = block[:, 0].astype(np.float32)
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    return mono if block.shape[1] == 1 else mono / np.float32(block.shape[1])
