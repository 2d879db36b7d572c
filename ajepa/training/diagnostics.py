"""Is it learning or collapsing? Metrics that need no labels, and the verdict drawn from a run's history of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa.model.vit import Encoder, patchify
from ajepa.objectives.base import Objective

MAX_CROPS = 256  # of the fixed set that health is measured on
CHUNK_PATCHES = 8192  # through the encoder at a time: 16 crops of `base`, about half a GB of activations in float32
PATCHES_PER_CROP = 16  # kept for the metrics over patches: 4096 of width 768 are 25 MB in float64


# Thresholds of `judge`, from runs of `nano` (width 192) measured every 20 steps: effective rank of clips, of patches,
# and the last linear online probe less that of the random initialisation (good to 0.03). Chosen on these very runs.
#                              clips: start, lowest, last      patches: start, last   probe
# ESC-10, 400 clips
#   preset, steps 0-300        19.4, 15.8 at 140, 21.0         84, 64                 +0.06
#   ... seed 1                 19.0, 14.3 at 160, 17.9         82, 58                 +0.04
#   squeezed into 300 steps    19.4, 9.9 at 200, 10.0          84, 43                 -0.01: learned nothing
#   ... EMA 0.99, last layer   19.4, 7.4 at 120, 9.2           84, 27                 0.00 (whole clips -0.03)
#   ... EMA 0: no teacher      19.4, 4.5 at 80, 8.6 at 200     84, 25 (lowest 11)     -0.11 at 100, -0.06 at 200
#   ... EMA 0.5, lr 5e-3       19.4, 3.9 at 160, 5.1 at 200    84, 8                  -0.16 at 200
# the demo's sounds, 600 clips
#   preset, steps 0-300        59.4, 43.3 at 180, 48.7         122, 108               +0.06
#   squeezed into 300 steps    59.4, 27.9 at 220, 28.3         122, 94                -0.01
# With EMA 0 and 0.5 features shrink as well: clip cosine from 0.36 to 0.9, target deviation from 0.78 to 0.3-0.4.
# Cosines are compared with the start too: a fresh `base` has 0.48 on ESC-10 and 0.81 on the demo's sounds (24 crops).
RANK_SHARE = 0.05  # of the largest rank there can be: below it, and fallen, is collapse
RANK_FALL = 0.5  # of its start: a clips' rank below it has fallen
RANK_WATCH = 0.6  # of its start
PATCH_RANK_FALL = 0.45  # of its start: a patches' rank above it still speaks against collapse
COSINE, COSINE_WATCH = 0.99, 0.8  # between clips, at less than half the start's distance from 1: all look the same
STD = 0.1  # of targets, which are layer-normed: below it they hardly vary; and of predictions over that of targets
PROBE_GAP = 0.05  # below the random initialisation, in accuracy
PROBE_GAIN = 0.03  # above it: what the online probe is good to
PAGE = "see ajepa/training/README.md"


State = Literal["learning", "no sign of collapse", "watch", "collapsing"]


@dataclass(frozen=True)
class Verdict:
    """What the history so far says, in one line."""

    state: State
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.state}" + (f"; {PAGE}" if self.state == "collapsing" else "")


def judge(history: Sequence[Mapping[str, Any]], width: int, crops: int = MAX_CROPS) -> Verdict:
    """Learning or collapsing, by the rules in README.md beside this file: the first rule that holds decides.

    A collapse takes two measurements in succession, for the rank always dips in the first few hundred steps. What a
    report does not hold is not judged.

    Args:
        history: reports in order of steps from the start of the run, not of the last resume: ranks are compared with
            their first value. Keys are those of `representation_health`, of the loop and of the online probe.
        width: of the encoder.
        crops: that health was measured on.
    """
    measured = [h for h in history if _finite(h, "effective_rank") is not None]
    if not measured:
        return Verdict("watch", "nothing measured yet")
    first, last = measured[0], measured[-1]
    recent = measured[-2:] if len(measured) > 2 else []  # the first one is the start itself
    start, now = first["effective_rank"], last["effective_rank"]
    largest = min(width, max(1, crops - 1))  # centring takes one
    limit = f"width {width}" if largest == width else f"the {largest} that {crops} crops allow"
    rank = f"effective rank {now:.1f}"
    if len(measured) == 1:
        return Verdict("watch", f"{rank} of {width}, no other measurement to compare it with yet")

    def small(report: Mapping[str, Any]) -> bool:
        return report["effective_rank"] < RANK_SHARE * largest

    target, prediction = latest(history, "target_std"), latest(history, "prediction_std")
    score, random = latest(history, "online_linear"), latest(history, "online_linear_random")
    probe = "" if score is None else f", online probe {score:.2f}"
    probe += "" if not probe or random is None else f" (random init {random:.2f})"
    below = score is not None and random is not None and score < random - PROBE_GAP
    fallen = bool(recent) and all(_has_fallen(h, first) for h in recent)
    cosine, std = _shown(last, "clip_cosine"), f"standard deviation {target or 0:.3f}"
    gained = now > start if score is None or random is None else score > random + PROBE_GAIN
    rules: list[tuple[State, bool, str]] = [
        (
            "collapsing", fallen and all(small(h) for h in recent),
            f"{rank}, below {RANK_SHARE:.0%} of {limit} and fallen from {start:.1f}",
        ),
        (
            "collapsing", bool(recent) and all(_are_alike(h, first, COSINE) for h in recent),
            f"clips have a mean cosine of {cosine}, all look the same",
        ),
        (
            "collapsing", bool(recent) and target is not None and target < STD,
            f"targets hardly vary any more ({std})",
        ),
        ("collapsing", fallen and below, f"{rank}, fallen from {start:.1f}{probe}"),
        (
            "watch", small(last) and now < start,
            f"{rank} is below {RANK_SHARE:.0%} of {limit} ({start:.1f} at the start){probe}",
        ),
        ("watch", now < RANK_WATCH * start, f"{rank}, fallen from {start:.1f}{probe}"),
        ("watch", below, f"{rank} ({start:.1f} at the start){probe}: worse than no training"),
        (
            "watch", _are_alike(last, first, COSINE_WATCH),
            f"clips become alike: mean cosine {cosine}; {rank}{probe}",
        ),
        (
            "watch", prediction is not None and target is not None and prediction < STD * target,
            f"predictions hardly vary (standard deviation {prediction or 0:.3f}); {rank}{probe}",
        ),
        ("learning", gained, f"{rank} of {width} ({start:.1f} at the start){probe}"),
        ("no sign of collapse", True, f"{rank} of {width} ({start:.1f} at the start){probe}"),
    ]  # fmt: skip
    return next(Verdict(state, reason) for state, holds, reason in rules if holds)


def _has_fallen(report: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """The rank of clips is below RANK_FALL of its start, and that of patches does not speak against it."""
    patches, patches_start = _finite(report, "patch_rank"), _finite(first, "patch_rank")
    kept = patches is not None and patches_start is not None and patches > PATCH_RANK_FALL * patches_start
    return report["effective_rank"] < RANK_FALL * first["effective_rank"] and not kept


def _are_alike(report: Mapping[str, Any], first: Mapping[str, Any], limit: float) -> bool:
    """The mean cosine between clips is above the limit, and its distance from 1 has halved since the start."""
    cosine, cosine_start = _finite(report, "clip_cosine"), _finite(first, "clip_cosine")
    return cosine is not None and cosine > limit and 1 - cosine < 0.5 * (1 - (cosine_start or 0.0))


def _shown(report: Mapping[str, Any], key: str) -> str:
    value = _finite(report, key)
    return "" if value is None else f"{value:.3f}"


def latest(history: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The newest finite value of a metric in a run's reports."""
    return next((h[key] for h in reversed(history) if _finite(h, key) is not None), None)


def _finite(report: Mapping[str, Any], key: str) -> float | None:
    value = report.get(key)
    return value if value is not None and math.isfinite(value) else None


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of the normalised singular values of [n, D].

    Between 1 (all features on a line through the origin) and min(n, D). Features are taken as they are.
    """
    features = features.double()
    if len(features) > features.shape[1]:  # the D x D Gram matrix has their squares
        values = torch.linalg.eigvalsh(features.T @ features).clamp_min(0).sqrt()
    else:
        values = torch.linalg.svdvals(features)
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between different rows of [n, D], or of each matrix of [B, n, D]; 1: all point the same way.

    NaN of a single row.
    """
    unit = F.normalize(features.double(), dim=-1)
    n = unit.shape[-2]
    return float((unit.sum(dim=-2).square().sum(dim=-1) - n).mean() / (n * (n - 1))) if n > 1 else math.nan


@torch.inference_mode()
def representation_health(encoder: Encoder, log_mel: Tensor) -> dict[str, float]:
    """How much of its space an encoder uses, on a fixed set of crops.

    - effective_rank, clip_cosine: of mean-pooled clips; the rank after centring. Collapse to a point or a few
      directions: rank down, cosine to 1. Centred, the cosine between clips is 0 by construction, so only raw.
    - patch_rank, patch_cosine: of patches (centred) and between patches of one clip (raw).
      patch_cosine_centred: the same after taking off the mean over all patches; 1 means that a patch tells nothing
      but its clip.
    - position_share: share of the patches' variance that their position alone explains; 1 means that a patch tells
      nothing but its place (about 1 / n without any effect).
    - feature_std, feature_std_min: standard deviation over patches, mean and smallest over dimensions.

    Costs one forward pass of the crops in float32, in chunks of CHUNK_PATCHES patches, and linear algebra on at
    most 4096 patches. The model has nothing that differs between train and eval mode, so that stays as it is.

    Args:
        encoder: plain, on any device.
        log_mel: [n, n_mels, crop_frames], normalised, n at most MAX_CROPS: the same at every call.
    """
    if len(log_mel) > MAX_CROPS:
        raise ValueError(f"health is measured on at most {MAX_CROPS} crops, not {len(log_mel)}")
    total = encoder.config.num_patches
    # A fixed draw: regular steps through the grid would favour some rows.
    kept = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:PATCHES_PER_CROP]
    clips, patches = [], []
    with torch.autocast(log_mel.device.type, enabled=False):
        for crops in log_mel.float().split(max(1, CHUNK_PATCHES // total)):
            tokens = encoder(patchify(crops))
            assert isinstance(tokens, Tensor)
            clips.append(tokens.mean(dim=1).cpu())
            patches.append(tokens[:, kept.to(tokens.device)].cpu())
    clip, patch = torch.cat(clips).double(), torch.cat(patches).double()  # [n, D], [n, k, D]
    spread = patch - patch.mean(dim=(0, 1))
    deviation = spread.square().mean(dim=(0, 1)).sqrt()  # [D]
    return {
        "effective_rank": effective_rank(clip - clip.mean(dim=0)),
        "patch_rank": effective_rank(spread.flatten(0, 1)),
        "clip_cosine": mean_cosine(clip),
        "patch_cosine": mean_cosine(patch),
        "patch_cosine_centred": mean_cosine(spread),
        "position_share": float(
            spread.mean(dim=0).square().sum(dim=-1).mean() / deviation.square().sum().clamp_min(1e-12)
        ),
        "feature_std": float(deviation.mean()),
        "feature_std_min": float(deviation.min()),
    }


@torch.inference_mode()
def patch_errors(model: Objective, log_mel: Tensor, context: Tensor, targets: Tensor) -> Tensor:
    """The training loss of each patch, [B, N] float32, NaN where a patch is context.

    Args:
        model: plain (not wrapped), on the device of the rest.
        log_mel: [B, n_mels, crop_frames], normalised.
        context, targets: [B, K], [B, M] patch indices, one mask a crop.
    """
    with torch.autocast(log_mel.device.type, enabled=False):
        errors = model(log_mel.float(), context, targets).errors  # [B, M]
    whole = torch.full((len(log_mel), model.config.model.num_patches), math.nan, device=errors.device)
    return whole.scatter(1, targets, errors)
