"""Windows of patches that cover clips of any length: planned on the host, cut from log-mels, joined after the encoder.

Shape legend: B clips, W windows, L layers, R rows and C columns of patches, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa.config import PATCH
from ajepa.model.pooling import cover, overlap_average, valid_columns


@dataclass(frozen=True)
class WindowPlan:
    """Which windows cover a batch of clips. Worked out on the host: a GPU would have to be waited for."""

    columns: int  # C, of the longest clip
    window: int  # columns of a window
    valid: Tensor  # [B] valid columns of each clip
    clip: Tensor  # [W] whose window it is
    start: Tensor  # [W] its first column

    @property
    def offsets(self) -> Tensor:
        """[W, window] columns of the clip."""
        return self.start[:, None] + torch.arange(self.window, device=self.start.device)

    def visible(self, rows: int) -> Tensor | None:
        """[W, R * window] false at patches behind a clip's end; None where there are none."""
        visible = self.offsets < self.valid[self.clip, None]
        return None if bool(visible.all()) else visible[:, None].expand(-1, rows, -1).flatten(1)

    def to(self, device: torch.device) -> "WindowPlan":
        """The same on a device, without a wait for it."""
        moved = (t.to(device, non_blocking=True) for t in (self.valid, self.clip, self.start))
        return WindowPlan(self.columns, self.window, *moved)


def plan_windows(num_frames: Tensor, longest: int) -> WindowPlan:
    """Windows of at most `longest` columns over clips of so many valid frames [B]."""
    valid = valid_columns(num_frames)
    columns = int(valid.max())
    window = min(columns, longest)
    return WindowPlan(columns, window, valid, *cover(valid, window))


def cut_windows(log_mel: Tensor, num_frames: Tensor, plan: WindowPlan) -> Tensor:
    """A window at every column of normalised log-mels [B, n_mels, T]: a view [B, n_mels, C - window + 1, window * 16].

    Behind the end of a clip stands the mean (0), also in its last patch: what padding was filled with is arbitrary.
    """
    frames = plan.columns * PATCH
    padded = F.pad(log_mel, (0, frames - log_mel.shape[-1]))
    inside = torch.arange(frames, device=log_mel.device) < num_frames[:, None]
    return (padded * inside[:, None]).unfold(-1, plan.window * PATCH, PATCH)


def join_windows(outputs: Tensor, plan: WindowPlan, rows: int) -> tuple[Tensor, Tensor]:
    """Encoded windows [W, L, R * window, D] to clips [B, L, R, C, D], averaged where windows overlap and zero behind a
    clip's end; and the valid columns [B, C]."""
    tokens, batch = outputs.unflatten(2, (rows, plan.window)), len(plan.valid)
    if len(plan.clip) > batch:
        place = plan.clip[:, None] * plan.columns + plan.offsets
        tokens = overlap_average(tokens, place, batch, plan.columns)
    valid = torch.arange(plan.columns, device=outputs.device) < plan.valid[:, None]
    return tokens.masked_fill(~valid[:, None, None, :, None], 0.0), valid
