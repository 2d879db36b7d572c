"""Waveforms as people hand them over: arrays or tensors of several shapes, to mono clips at the front end's rate."""

import numbers
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ajepa.audio.collector import MAX_AMPLITUDE, resample
from ajepa.audio.errors import RATES
from ajepa.config import FrontEndConfig

Waveforms = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]
MAX_CHANNELS = 32  # [samples, n] with n up to this are channels, not a batch of n samples each
_mixed = False  # whether the warning of mixed channels was given


def as_clips(
    waveform: Waveforms, sample_rate: int, front_end: FrontEndConfig, lengths: Sequence[int] | None = None
) -> list[Tensor]:
    """Mono float32 clips [samples] at the front end's sample rate, one a clip of the input.

    Args:
        waveform: [samples], [B, samples], [B, channels, samples], [samples, channels], or a list of [samples].
        sample_rate: in Hz.
        lengths: [B] valid samples of a padded batch.

    Raises:
        TypeError: no numbers, integer samples, or a sample rate that is no integer.
        ValueError: empty, another shape, or NaN or infinite samples.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, numbers.Integral):
        raise TypeError(f"the sample rate is an integer in Hz, not {type(sample_rate).__name__}")
    if sample_rate < RATES[0]:
        raise ValueError(f"a sample rate of {sample_rate}: give it in Hz")
    clips = _rows(waveform)
    if not clips:
        raise ValueError("the batch is empty")
    if lengths is not None:
        if len(lengths) != len(clips) or any(not 0 < n <= len(c) for n, c in zip(lengths, clips, strict=False)):
            raise ValueError(f"lengths {list(lengths)}: give 1 to the padded length for each of {len(clips)} clips")
        clips = [clip[: int(n)] for clip, n in zip(clips, lengths, strict=True)]
    return [_check(clip, int(sample_rate), front_end) for clip in clips]


def _rows(waveform: Waveforms) -> list[Tensor]:
    if isinstance(waveform, list | tuple):
        rows = [_tensor(row) for row in waveform]
        if any(row.ndim != 1 for row in rows):
            raise ValueError(f"a list holds waveforms of the shape [samples], not {[list(r.shape) for r in rows][:4]}")
        return rows
    array = _tensor(waveform)  # anything else is refused there
    if array.ndim == 1:
        array = array[None]
    elif array.ndim == 2 and array.shape[1] <= MAX_CHANNELS < array.shape[0]:
        array = _mix(array.T[None])
    elif array.ndim == 3 and 0 < array.shape[1] <= MAX_CHANNELS:
        array = _mix(array)
    if array.ndim != 2:
        raise ValueError(
            f"a waveform has the shape [samples], [B, samples] or [B, channels, samples], not {list(array.shape)}"
        )
    return list(array)


def _tensor(values: object) -> Tensor:
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"a waveform is a numpy array or a torch tensor, not {type(values).__name__}")
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating):
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if isinstance(values, Tensor) and values.is_floating_point():
        return values.float()
    raise TypeError(f"samples are floats between -1 and 1, not {values.dtype}: divide 16-bit integers by 32768")


def _mix(channels: Tensor) -> Tensor:
    """[B, channels, samples] -> [B, samples], as decoding does."""
    global _mixed
    if channels.shape[1] > 1 and not _mixed:
        _mixed = True
        warnings.warn(f"{channels.shape[1]} channels are averaged (warned once)", stacklevel=6)
    return channels.mean(dim=1)


def _check(clip: Tensor, sample_rate: int, front_end: FrontEndConfig) -> Tensor:
    if not len(clip):
        raise ValueError("the waveform is empty")
    low, high = clip.aminmax()  # without a copy: it may be hours
    if not (bool(low >= -MAX_AMPLITUDE) and bool(high <= MAX_AMPLITUDE)):
        raise ValueError("the waveform holds NaN or infinite samples")
    if sample_rate != front_end.sample_rate:
        resampled = resample(clip.cpu().numpy(), sample_rate, front_end.sample_rate)
        clip = torch.from_numpy(np.ascontiguousarray(resampled)).to(clip.device)
    return clip
