"""What is heard and seen of a clip: its sound as a file that every browser plays, and its log-mel as a picture."""

import io
from typing import Any

import matplotlib
import numpy as np
import soundfile
import torch
from PIL import Image

from ajepa.audio.collector import resample
from ajepa.audio.decode import decode_clip
from ajepa.audio.logmel import LogMel, log_mel_in_pieces
from ajepa.audio.read_ahead import Opener, open_clip

RATE = 32_000  # Hz; MP3 has it, and it keeps what is heard of most recordings
MAX_SECONDS = 120.0  # of a sound that is served
MP3_COMPRESSION = 0.7  # 0 best, 1 smallest; about 45 kbit/s


def waveform(clip: dict[str, Any], seconds: float, opener: Opener = open_clip) -> np.ndarray:
    """[samples] float32 mono at RATE: the first seconds of a manifest row's sound.

    Raises:
        AudioError, UnreachableError: as `decode`.
    """
    decoded, _ = decode_clip(clip, RATE, round(seconds * RATE), opener)
    return decoded.waveform


def as_file(samples: np.ndarray, kind: str) -> bytes:
    """A WAV (16 bits) or MP3 file of a waveform at RATE; louder than full scale is clipped."""
    stream = io.BytesIO()
    how: dict[str, Any] = {"subtype": "PCM_16"}
    if kind == "MP3":
        how = {"subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE", "compression_level": MP3_COMPRESSION}
    soundfile.write(stream, np.clip(samples, -1, 1), RATE, format=kind, **how)
    return stream.getvalue()


def picture(samples: np.ndarray, front_end: LogMel, width: int, height: int) -> bytes:
    """A PNG of the log-mel of a waveform at RATE, low frequencies below, by `front_end`; columns are means over time.

    Args:
        width, height: in pixels, at most the frames and the mel bins.
    """
    waveform = torch.from_numpy(resample(samples, RATE, front_end.config.sample_rate))
    log_mel = log_mel_in_pieces(front_end, waveform[None])[0].float()
    bins, frames = log_mel.shape
    columns = min(width, frames)
    image = torch.nn.functional.adaptive_avg_pool2d(log_mel[None], (min(height, bins), columns))[0].numpy()
    low, high = np.quantile(image, [0.05, 0.999])
    levels = np.clip(255 * (image - low) / max(high - low, 1), 0, 255).astype(np.uint8)
    drawn = Image.fromarray(np.ascontiguousarray(levels[::-1]))
    drawn.putpalette((255 * matplotlib.colormaps["magma"](np.arange(256))[:, :3]).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    drawn.save(stream, "PNG", optimize=True)
    return stream.getvalue()
