"""Windows of patches that cover clips of any length: planned on the host, cut from log-mels, joined after the encoder.

Shape legend: B clips, W windows, L layers, R rows and C columns of patches, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa.audio.normalise import Normaliser
from ajepa.config import PATCH
from ajepa.model.pooling import cover, sum_overlaps, valid_columns

PART_PATCHES = 1 << 14  # of a batch, whose embeddings are held at a time: 50 MB of `base`


@dataclass(frozen=True)
class WindowPlan:
    """Which windows cover a batch of clips, or a part of their columns. Worked out on the host: a GPU would have to be
    waited for."""

    columns: int  # C, of the longest clip
    window: int  # columns of a window
    valid: Tensor  # [B] valid columns of each clip
    clip: Tensor  # [W] whose window it is
    start: Tensor  # [W] its first column
    beyond: int = 0  # columns behind these that windows reach

    @property
    def offsets(self) -> Tensor:
        """[W, window] columns of the clip."""
        return self.start[:, None] + torch.arange(self.window, device=self.start.device)

    def visible(self, rows: int) -> Tensor | None:
        """[W, R * window] false at patches behind a clip's end; None where there are none."""
        visible = self.offsets < self.valid[self.clip, None]
        return None if bool(visible.all()) else visible[:, None].expand(-1, rows, -1).flatten(1)

    def parts(self, most: int) -> Iterator[tuple[int, Tensor, "WindowPlan"]]:
        """The plan in parts of at most `most` columns: (first column, numbers of the windows that begin in the part,
        the plan of these windows, counted from that column).

        Raises:
            ValueError: `most` is not larger than a window.
        """
        if most <= self.window:
            raise ValueError(f"parts of {most} columns for windows of {self.window}")
        for first in range(0, self.columns, most):
            last = min(first + most, self.columns)
            here = ((first <= self.start) & (self.start < last)).nonzero().flatten()
            beyond = 0 if last == self.columns else self.window
            start = self.start[here] - first
            yield first, here, WindowPlan(last - first, self.window, self.valid - first, self.clip[here], start, beyond)

    def to(self, device: torch.device) -> "WindowPlan":
        """The same on a device, without a wait for it."""
        valid, clip, start = (t.to(device, non_blocking=True) for t in (self.valid, self.clip, self.start))
        return WindowPlan(self.columns, self.window, valid, clip, start, self.beyond)


def plan_windows(num_frames: Tensor, longest: int) -> WindowPlan:
    """Windows of at most `longest` columns over clips of so many valid frames [B]."""
    valid = valid_columns(num_frames)
    columns = int(valid.max())
    window = min(columns, longest)
    return WindowPlan(columns, window, valid, *cover(valid, window))


def cut_windows(log_mel: Tensor, num_frames: Tensor, plan: WindowPlan) -> Tensor:
    """A window at every column of normalised log-mels [B, n_mels, T]: a view [B, n_mels, positions, window * 16].

    Behind the end of a clip stands the mean (0), also in its last patch: what padding was filled with is arbitrary.
    """
    frames = (plan.columns + plan.beyond) * PATCH
    padded = F.pad(log_mel, (0, frames - log_mel.shape[-1]))
    inside = torch.arange(frames, device=log_mel.device) < num_frames[:, None]
    return (padded * inside[:, None]).unfold(-1, plan.window * PATCH, PATCH)


class Joiner:
    """Encoded windows to embeddings of columns, averaged where windows overlap; one part of a plan after the other."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._behind: tuple[Tensor, Tensor] | None = None  # sums and counts of the columns behind a part

    def join(self, outputs: Tensor, plan: WindowPlan) -> tuple[Tensor, Tensor]:
        """Windows [W, L, R * window, D] to clips [B, L, R, C, D], zero behind a clip's end; and the valid columns
        [B, C]."""
        tokens = outputs.unflatten(2, (self._rows, plan.window))
        valid = torch.arange(plan.columns, device=outputs.device) < plan.valid[:, None]
        if plan.columns > plan.window or self._behind is not None:  # else it is one window a clip
            tokens = self._average(tokens, plan)
        return tokens.masked_fill(~valid[:, None, None, :, None], 0.0), valid

    def _average(self, tokens: Tensor, plan: WindowPlan) -> Tensor:
        _, layers, rows, _, width = tokens.shape
        batch, columns = len(plan.valid), plan.columns + plan.beyond
        total, count = sum_overlaps(tokens, plan.clip[:, None] * columns + plan.offsets, batch, columns)
        if self._behind is not None:
            longer = (0, 0, 0, columns - self._behind[1].shape[1])
            total, count = F.pad(self._behind[0], longer) + total, F.pad(self._behind[1], longer) + count
        self._behind = total[:, plan.columns :], count[:, plan.columns :]
        mean = total[:, : plan.columns] / count[:, : plan.columns].clamp_min(1)
        return mean.unflatten(2, (layers, rows, width)).permute(0, 2, 3, 1, 4)


def encode_in_parts(
    log_mel: Tensor,
    num_frames: Tensor,
    plan: WindowPlan,
    encode: Callable[[Tensor, Tensor | None], Tensor],
    *,
    normalise: Normaliser,
    rows: int,
    at_once: int,
    barred: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings of clips, one part of their columns after the other, each of PART_PATCHES patches of the batch or two
    windows.

    Args:
        log_mel: [B, n_mels, T] raw, on any device.
        num_frames: [B] valid frames, on the host.
        plan: of all the windows.
        encode: windows [w, n_mels, window * 16], and which patches are seen (None for all of them) [w, R * window], to
            [w, L, R * window, D].
        at_once: windows that are encoded together.
        barred: [W, R * window] false at patches that no query may see.

    Yields:
        [B, L, R, C, D], and the valid columns [B, C].
    """
    device, joiner = normalise.mean.device, Joiner(rows)
    for first, numbers, here in plan.parts(max(2 * plan.window, PART_PATCHES // (rows * len(num_frames)))):
        mask = here.visible(rows)
        if barred is not None:
            mask = barred[numbers] if mask is None else barred[numbers] & mask
        # Small tensors of the host are sent without a wait for the device.
        mask = None if mask is None else mask.to(device, non_blocking=True)
        frames = (num_frames - first * PATCH).to(device, non_blocking=True)
        part = here.to(device)
        columns = log_mel[..., first * PATCH : (first + here.columns + here.beyond) * PATCH]
        windows = cut_windows(normalise(columns.to(device)), frames, part)
        outputs = [
            encode(
                windows[part.clip[i : i + at_once], :, part.start[i : i + at_once]],
                None if mask is None else mask[i : i + at_once],
            )
            for i in range(0, len(part.clip), at_once)
        ]
        yield joiner.join(torch.cat(outputs), part)
