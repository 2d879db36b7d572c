"""The linear probe: one linear layer on frozen features, under cross-entropy or, for several labels a clip, under
binary cross-entropy, with an L2 penalty. Both are convex: there is one solution and no seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # L2 penalties tried, in this order
MAX_ITERATIONS, HISTORY = 100, 10  # of L-BFGS, a strength
TOLERANCE = 1e-4  # relative decrease of the loss in one iteration
SMALLEST = 1e-6  # share of the largest variance under which a principal direction holds nothing but rounding
EXACT = 4096  # sizes up to which the eigenvectors are found in float64


@dataclass(frozen=True)
class LinearProbe:
    """One linear layer on raw features; standardising is part of it."""

    weight: Tensor  # [D, C]
    bias: Tensor  # [C]
    strength: float  # L2 penalty

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Logits [n, C] of features [n, D]."""
        values = torch.from_numpy(np.ascontiguousarray(features, np.float32)).to(self.weight.device)
        return torch.addmm(self.bias, values, self.weight).cpu().numpy()


def standardise(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) over all axes but the last; a constant feature has the deviation 1."""
    over = tuple(range(features.ndim - 1))
    mean, std = features.mean(axis=over, dtype=np.float64), features.std(axis=over, dtype=np.float64)
    return mean, np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)


def fit_path(
    features: np.ndarray,
    targets: np.ndarray,
    multi_label: bool,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
) -> Iterator[LinearProbe]:
    """A probe for each L2 strength, strongest first; each starts from the one before it.

    Minimises mean over clips of the loss (summed over classes) + strength / 2 * |weights|^2 on features standardised
    here, with a free bias. In the basis of the features' principal directions, which leaves the penalty as it is, the
    Hessian is close to diagonal: p_c (1 - p_c) * variance_j + strength, p_c the share of class c. Scaled by it, full
    batch L-BFGS needs few iterations, and directions that n clips do not span are dropped (the solution has none).

    Args:
        features: [n, D] of the training part.
        targets: [n, C] bool; one true in a row unless multi_label.
        strengths: descending; scikit-learn's C is 1 / (strength * n).
    """
    mean, std = standardise(features)
    x = torch.from_numpy(((features - mean) / std).astype(np.float32)).to(device)
    y = torch.from_numpy(targets.astype(np.float32)).to(device)
    rotated, basis, variance = _principal(x)
    del x
    share = y.mean(dim=0).clamp(0.5 / len(y), 1 - 0.5 / len(y))
    curvature = share * (1 - share)
    bias = torch.log(share) if not multi_label else torch.logit(share)
    weight = torch.zeros(rotated.shape[1], y.shape[1], device=device)
    for strength in sorted(strengths, reverse=True):
        scale = torch.outer(variance, curvature).add_(strength).rsqrt_()
        weight, bias = _minimise(rotated, y, multi_label, strength, weight, bias, scale, curvature.rsqrt())
        raw = (basis @ weight) / torch.from_numpy(std.astype(np.float32)).to(device)[:, None]
        yield LinearProbe(raw, bias - torch.from_numpy(mean.astype(np.float32)).to(device) @ raw, strength)


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised features in their principal directions: (x @ basis [n, r], basis [D, r], variances [r])."""
    n, width = x.shape
    wide = x.double() if min(n, width) <= EXACT else x
    values, vectors = torch.linalg.eigh((wide.T @ wide if width <= n else wide @ wide.T) / n)
    keep = values > SMALLEST * values[-1].clamp_min(1e-12)
    values, vectors = values[keep], vectors[:, keep]
    basis = vectors if width <= n else wide.T @ vectors / (n * values).sqrt()
    return x @ basis.float(), basis.float(), values.float()


def _minimise(
    x: Tensor, y: Tensor, multi_label: bool, strength: float, weight: Tensor, bias: Tensor, scale: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor]:
    """L-BFGS on weight / scale and bias / unit from the given start; the gradient is written out."""
    scaled, free = weight / scale, bias / unit
    optimiser = torch.optim.LBFGS(
        [scaled, free], max_iter=MAX_ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    raise NotImplementedError


def loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Mean over clips: cross-entropy, or binary cross-entropy summed over classes. logits, targets: [n, C] float."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
    return F.cross_entropy(logits, targets)
