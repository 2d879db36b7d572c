"""AudioEncoder: a trained ViT with its front end and normalisation, waveform or log-mel in, embeddings out.

Shape legend: B clips, R rows (frequency bands) and C columns (16 frames, 160 ms) of patches, D width, W windows.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.audio.logmel import LogMel, log_mel_in_pieces
from ajepa.audio.normalise import Normaliser
from ajepa.audio.statistics import Statistics
from ajepa.audio.waveforms import Waveforms, as_clips
from ajepa.choices import POOLINGS, Bands, Combine, Pooling, Precision
from ajepa.config import PATCH, FrontEndConfig
from ajepa.inference.windows import encode_in_parts, plan_windows
from ajepa.model.pooling import pool_parts, valid_columns
from ajepa.model.precision import CPU_PATCHES
from ajepa.model.vit import Encoder, patchify

# Windows are computed in parts of so many patches: memory stays bounded.
PATCHES_AT_ONCE = {"cpu": CPU_PATCHES, "cuda": 1 << 16}


class Frames(NamedTuple):
    """Embeddings over time."""

    embeddings: Tensor  # [B, T', D]
    timestamps: Tensor  # [T'] ms, the middle of each
    valid: Tensor  # [B, T'] false behind the end of a clip


class Patches(NamedTuple):
    """Embeddings of every patch; patch (f, t) has index f * C + t."""

    embeddings: Tensor  # [B, N, D]
    valid: Tensor  # [B, N] false behind the end of a clip
    grid: tuple[int, int]  # (R, C)


class AudioEncoder(nn.Module):
    """Waveform or log-mel to embeddings of a clip, of frames or of patches.

    Input longer than the window the encoder was trained on is cut into windows that cover it evenly, the last one
    flush with its end; where they overlap, embeddings are averaged. Of shorter input only its own columns are seen:
    padding is barred from attention and counts in no pool. A column counts when half of its frames are sound.

    Waveforms are [samples], [B, samples], [B, channels, samples], [samples, channels] as soundfile reads them, or a
    list of unequally long ones; channels are averaged, with a warning once. They are resampled to `sample_rate`, and
    their log-mels rounded to float16 as shards store them, so embeddings equal those of the shards.

    Everything is differentiable where the parameters require gradients; what `ajepa.load_encoder` returns is frozen.

    Raises (all methods that take waveforms):
        TypeError: no numbers, integer samples (divide int16 by 32768), or a sample rate that is no integer.
            Also weights that were cast: give `precision` to load_encoder instead.
        ValueError: an empty batch, another shape, NaN or infinite samples, a sample rate below 1000 Hz.
    """

    def __init__(
        self,
        encoder: Encoder,
        front_end: FrontEndConfig,
        statistics: Statistics,
        *,
        precision: Precision = "fp32",
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if precision not in get_args(Precision):
            raise ValueError(f"precision {precision!r}: choose from {', '.join(get_args(Precision))}")
        self.encoder = encoder.eval()
        self.front_end, self.log_mel = front_end, LogMel(front_end)
        self.normalise = Normaliser(statistics)
        self.precision: Precision = precision
        self.about = about or {}  # where it comes from: source, branch, step, dataset_hash, digest

    @property
    def width(self) -> int:
        """Dimension D of a patch's embedding."""
        return self.encoder.config.width

    @property
    def depth(self) -> int:
        """Layers, numbered from 1."""
        return self.encoder.config.depth

    @property
    def rows(self) -> int:
        """Rows of patches, R."""
        return self.encoder.config.grid[0]

    @property
    def sample_rate(self) -> int:
        """What the front end works at, in Hz."""
        return self.front_end.sample_rate

    @property
    def column_ms(self) -> float:
        """Time between columns of patches."""
        return PATCH * 1000 / self.front_end.frame_rate

    @property
    def first_ms(self) -> float:
        """The middle of the first column."""
        return (PATCH - 1) / 2 * 1000 / self.front_end.frame_rate

    @property
    def device(self) -> torch.device:
        return self.normalise.mean.device

    def forward(self, waveform: Waveforms, sample_rate: int, lengths: Sequence[int] | None = None) -> Tensor:
        """Clip embeddings [B, D]: the mean over patches."""
        return self.clip_embeddings(waveform, sample_rate, lengths=lengths)

    def clip_embeddings(
        self,
        waveform: Waveforms,
        sample_rate: int,
        *,
        lengths: Sequence[int] | None = None,
        pooling: Pooling = "mean",
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> Tensor:
        """One vector a clip, [B, D'] (global average pooling, spec 9, or one of POOLINGS).

        Args:
            sample_rate: of the waveform, in Hz.
            lengths: [B] valid samples of a padded batch.
            pooling: see `pool`.
            layers, combine: see `tokens`; "stack" gives [B, L, D'].
        """
        log_mel, num_frames = self.log_mels(waveform, sample_rate, lengths)
        return self.pooled(log_mel, num_frames, (pooling,), layers=layers, combine=combine)[pooling]

    def frame_embeddings(
        self,
        waveform: Waveforms,
        sample_rate: int,
        *,
        lengths: Sequence[int] | None = None,
        hop_ms: float | None = None,
        bands: Bands = "mean",
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> Frames:
        """Vectors over time [B, T', D'], with their times.

        Args:
            hop_ms: time between vectors; by default that of a column, 160 ms. A half, quarter, eighth or sixteenth of
                it takes 2, 4, 8 or 16 passes over shifted input. Each vector sees 160 ms, and its window around it.
            bands: "mean" over the rows of a column, or "concat" for D' = R * D.
        """
        log_mel, num_frames = self.log_mels(waveform, sample_rate, lengths)
        passes = self._passes(hop_ms)
        step = PATCH // passes
        columns = int(valid_columns(num_frames).max())
        parts = []
        for i in range(passes):
            left = (num_frames - i * step).clamp_min(1)
            shifted = log_mel[..., i * step :] if log_mel.shape[-1] > i * step else log_mel[..., -1:]
            tokens = self.frames(shifted, left, bands=bands, layers=layers, combine=combine)
            parts.append(F.pad(tokens, (0, 0, 0, columns - tokens.shape[-2])))
        embeddings = torch.stack(parts, dim=-2).flatten(-3, -2)  # passes interleaved: [B, (L,) T', D']
        start = torch.arange(embeddings.shape[-2]) * step  # first frame of each
        valid = (start + PATCH // 2 <= num_frames[:, None]) | (start == 0)
        keep = int(valid.any(dim=0).sum())
        timestamps = start[:keep] * (1000 / self.front_end.frame_rate) + self.first_ms
        return Frames(embeddings[..., :keep, :], timestamps.to(self.device), valid[:, :keep].to(self.device))

    def patch_embeddings(
        self,
        waveform: Waveforms,
        sample_rate: int,
        *,
        lengths: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> Patches:
        """A vector a patch, [B, N, D'] with N = R * C."""
        log_mel, num_frames = self.log_mels(waveform, sample_rate, lengths)
        tokens, valid = self.tokens(log_mel, num_frames, layers=layers, combine=combine)
        grid = (self.rows, valid.shape[1])
        return Patches(tokens.flatten(-3, -2), valid[:, None].expand(-1, self.rows, -1).flatten(1), grid)

    def log_mels(
        self, waveform: Waveforms, sample_rate: int, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """([B, n_mels, T] float16 as shards hold them, [B] valid frames). Clips are padded at their end."""
        self._refuse_cast()
        clips = as_clips(waveform, sample_rate, self.front_end, lengths)
        sizes = {len(clip) for clip in clips}
        if len(sizes) == 1:
            batch = clips[0][None] if len(clips) == 1 else torch.stack(clips)
            log_mel = log_mel_in_pieces(self.log_mel, batch.to(self.device))
            return log_mel, torch.full((len(clips),), log_mel.shape[-1])
        # Apart, not padded: the ends of each are mirrored.
        apart = [log_mel_in_pieces(self.log_mel, clip[None].to(self.device))[0] for clip in clips]
        longest = max(part.shape[-1] for part in apart)
        padded = torch.stack([F.pad(part, (0, longest - part.shape[-1])) for part in apart])
        return padded, torch.tensor([part.shape[-1] for part in apart])

    def pooled(
        self,
        log_mel: Tensor,
        num_frames: Tensor | np.ndarray,
        poolings: Sequence[Pooling] = POOLINGS,
        *,
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
        key_mask: Callable[[int, int], Tensor] | None = None,
    ) -> dict[Pooling, Tensor]:
        """Poolings [B, D'] of raw log-mels [B, n_mels, T] over their valid frames [B]: see `tokens` and `pool`. Memory
        holds one part of their patches, whatever their length."""
        parts = self.parts(log_mel, num_frames, layers=layers, combine=combine, key_mask=key_mask)
        return pool_parts(parts, poolings)

    def frames(
        self,
        log_mel: Tensor,
        num_frames: Tensor | np.ndarray,
        *,
        bands: Bands = "mean",
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
    ) -> Tensor:
        """Vectors of the columns [B, (L,) C, D'] of raw log-mels: see `tokens` and `frame_embeddings`."""
        parts = [
            tokens.mean(dim=-3) if bands == "mean" else tokens.transpose(-3, -2).flatten(-2)
            for tokens, _ in self.parts(log_mel, num_frames, layers=layers, combine=combine)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def tokens(
        self,
        log_mel: Tensor,
        num_frames: Tensor | np.ndarray,
        *,
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
        key_mask: Callable[[int, int], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The patch embeddings on their grid.

        Args:
            log_mel: [B, n_mels, T] raw log-mels (any float type), padded to a common T.
            num_frames: [B] valid frames, at least 1; on a GPU best on the host.
            layers: numbers from 1 to depth; None is the last one after the final norm. Others are layer-normalised.
            combine: several layers as one long vector ("concat") or along a new axis ("stack": [B, L, R, C, D]).
            key_mask: (windows, patches) to a boolean [windows, patches], false where a patch is barred as a key and
                value of every attention (regularised masking, arXiv:2311.15830).

        Returns:
            [B, R, C, D'] float32, zero where not valid, and valid [B, C].

        Raises:
            ValueError: a layer that is not there.
        """
        parts = list(self.parts(log_mel, num_frames, layers=layers, combine=combine, key_mask=key_mask))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([tokens for tokens, _ in parts], dim=-2), torch.cat([valid for _, valid in parts], dim=-1)

    def parts(
        self,
        log_mel: Tensor,
        num_frames: Tensor | np.ndarray,
        *,
        layers: Sequence[int] | None = None,
        combine: Combine = "concat",
        key_mask: Callable[[int, int], Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `tokens`, one part of the columns after the other, see `encode_in_parts`: who reduces them needs no memory
        for hours of them."""
        self._refuse_cast()
        wanted = self._layers(layers)
        frames = torch.as_tensor(num_frames, device="cpu")
        plan = plan_windows(frames, self.encoder.config.grid[1])
        barred = None if key_mask is None else key_mask(len(plan.clip), self.rows * plan.window)
        parts = encode_in_parts(
            log_mel,
            frames,
            plan,
            lambda windows, mask: self._encode(windows, mask, wanted),
            normalise=self.normalise,
            rows=self.rows,
            at_once=self.windows_at_once(plan.window),
            barred=barred,
        )
        for tokens, valid in parts:
            yield (tokens.permute(0, 2, 3, 1, 4).flatten(3) if combine == "concat" else tokens), valid

    def _encode(self, parts: Tensor, mask: Tensor | None, layers: list[int]) -> Tensor:
        """[w, n_mels, frames] -> [w, L, patches, D] float32."""
        if mask is not None:
            mask = mask[:, None, None]  # every query of every head
        last = self.depth - min(layers) + 1
        with self._autocast():
            outputs = self.encoder(patchify(parts), mask=mask, last_layers=last)
            if isinstance(outputs, Tensor):
                return _full(outputs)[:, None]
            chosen = [outputs[layer - self.depth - 1] for layer in layers]
            width = (self.width,)
            return torch.stack(
                [
                    _full(self.encoder.norm(x)) if layer == self.depth else F.layer_norm(_full(x), width)
                    for layer, x in zip(layers, chosen, strict=True)
                ],
                dim=1,
            )

    def _refuse_cast(self) -> None:
        dtype = next(self.encoder.parameters()).dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise TypeError(f'the weights were cast to {dtype}: give load_encoder(..., precision="bf16") instead')

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def windows_at_once(self, columns: int) -> int:
        """Windows of so many columns that are computed together: more need more memory and are no faster."""
        return max(1, PATCHES_AT_ONCE.get(self.device.type, CPU_PATCHES) // (self.rows * columns))

    def _layers(self, layers: Sequence[int] | None) -> list[int]:
        wanted = [self.depth] if layers is None else list(layers)
        if not wanted or any(not 1 <= layer <= self.depth for layer in wanted):
            raise ValueError(f"layers {wanted}: this encoder has the layers 1 to {self.depth}")
        return wanted

    def _passes(self, hop_ms: float | None) -> int:
        passes = 1 if hop_ms is None else self.column_ms / hop_ms
        if passes not in (1, 2, 4, 8, 16):
            raise ValueError(f"hop_ms {hop_ms}: use {', '.join(f'{self.column_ms / n:g}' for n in (1, 2, 4, 8, 16))}")
        return int(passes)


def _full(x: Tensor) -> Tensor:
    """float32, and float64 as it is: a model in double precision stays one."""
    return x if x.dtype == torch.float64 else x.float()
