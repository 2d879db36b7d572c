"""Waveforms to a padded batch for an A-JEPA encoder in transformers. The log-mel is made inside the model."""

from typing import Any

import numpy as np
from transformers import BatchFeature, Wav2Vec2FeatureExtractor

CHANGE_THE_LENGTH = ("truncation", "max_length", "pad_to_multiple_of")
MAX_AMPLITUDE = 1e12  # beyond any integer scaling; its mel power would overflow float32


class AJepaFeatureExtractor(Wav2Vec2FeatureExtractor):  # pads, and checks the sampling rate
    """Mono waveforms, floats between -1 and 1, to `input_values` [B, samples] and `attention_mask` [B, samples].

    Raises (when called):
        ValueError: another sampling rate than the model's, an empty batch or waveform, NaN or infinite samples.
        TypeError: integer samples.
    """

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        return_attention_mask: bool = True,
        do_normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            do_normalize=do_normalize,
            **kwargs,
        )

    def __call__(self, raw_speech: Any, padding: Any = True, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        """See Wav2Vec2FeatureExtractor.

        Args:
            raw_speech: [samples], [B, samples], or a list of unequally long waveforms [samples].
        """
        if not len(raw_speech):
            raise ValueError("there is no waveform, or an empty one")
        batched = isinstance(raw_speech, list | tuple) and not np.isscalar(raw_speech[0])
        clips = [_checked(clip) for clip in raw_speech] if batched else _checked(raw_speech)
        one = clips if not isinstance(clips, list) else clips[0] if len(clips) == 1 else None
        if one is None or one.ndim != 1 or any(kwargs.get(name) for name in CHANGE_THE_LENGTH):
            return super().__call__(clips, padding=padding, return_tensors=return_tensors, **kwargs)
        # One clip needs no padding, which would copy it, nor a mask of integers: it may be hours.
        features = super().__call__(one[:1], padding=padding, **kwargs)
        features["input_values"] = one[None]
        if "attention_mask" in features:
            features["attention_mask"] = np.ones((1, len(one)), np.int8)
        return features if return_tensors is None else features.convert_to_tensors(return_tensors)


def _checked(clip: Any) -> np.ndarray:
    values = np.asarray(clip)
    if not values.size:
        raise ValueError("the waveform is empty")
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"samples are floats between -1 and 1, not {values.dtype}: divide 16-bit integers by 32768")
    if not (values.min() >= -MAX_AMPLITUDE and values.max() <= MAX_AMPLITUDE):  # without a copy: it may be hours
        raise ValueError("the waveform holds NaN or infinite samples")
    return values.astype(np.float32, copy=False)
