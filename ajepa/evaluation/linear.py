"""The linear probe: one linear layer on frozen features, under cross-entropy or, for several labels a clip, under
binary cross-entropy, with an L2 penalty. Both are convex: there is one solution and no seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = (10, 3, 1, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # L2 penalties tried, in this order
MAX_ITERATIONS, HISTORY, HALVINGS = 100, 10, 5  # of L-BFGS, a strength
TOLERANCE = 3e-4  # relative decrease of the loss in one iteration at which a probe is done
ROUNDING = 1e-6  # of a loss in float32
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
    return mean, divisor(mean, std)


def divisor(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """The standard deviation, 1 where nothing but rounding is left of it beside the mean."""
    return np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)


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
    rotated = torch.cat([rotated, torch.ones(len(y), 1, device=rotated.device)], dim=1)  # the bias is a last weight
    variance = torch.cat([variance, torch.ones(1, device=rotated.device)])
    weight = torch.zeros(rotated.shape[1], y.shape[1], device=device)
    weight[-1] = torch.logit(share) if multi_label else torch.log(share)
    offset, unit = (torch.from_numpy(v.astype(np.float32)).to(device) for v in (mean, std))
    for strength in sorted(strengths, reverse=True):
        penalty = torch.full_like(variance, strength)
        penalty[-1] = 0
        scale = torch.outer(variance, curvature).add_(penalty[:, None]).rsqrt_()
        weight = _minimise(rotated, y, multi_label, penalty[:, None], weight, scale)
        raw = (basis @ weight[:-1]) / unit[:, None]
        yield LinearProbe(raw, weight[-1] - offset @ raw, strength)


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised features in their principal directions: (x @ basis [n, r], basis [D, r], variances [r])."""
    n, width = x.shape
    wide = x.double() if min(n, width) <= EXACT else x
    values, vectors = torch.linalg.eigh((wide.T @ wide if width <= n else wide @ wide.T) / n)
    keep = values > SMALLEST * values[-1].clamp_min(1e-12)
    values, vectors = values[keep], vectors[:, keep]
    basis = vectors if width <= n else wide.T @ vectors / (n * values).sqrt()
    return x @ basis.float(), basis.float(), values.float()


def _minimise(x: Tensor, y: Tensor, multi_label: bool, penalty: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """L-BFGS from the given start on weight / scale.

    Logits are linear in the weights, so that a step of any length costs no product with x. Under binary cross-entropy
    the classes are so many problems of their own, and each has its own curvature and step.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=0) if multi_label else (a * b).sum()

    def objective(logits: Tensor, weight: Tensor) -> Tensor:
        return loss_by_class(logits, y, multi_label) + 0.5 * dot(penalty * weight, weight)

    def gradient(logits: Tensor, weight: Tensor) -> Tensor:
        wrong = (torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=1)).sub_(y)
        return ((x.T @ wrong).div_(len(x)).add_(penalty * weight)).mul_(scale)

    logits = x @ weight
    value, slope = objective(logits, weight), gradient(logits, weight)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []  # of weight / scale, of the slope, 1 / their product
    for _ in range(MAX_ITERATIONS):
        direction = _direction(slope, steps, dot)
        down = dot(direction, slope)
        change = scale * direction
        moved = x @ change
        length = torch.ones_like(down)
        for _ in range(HALVINGS):
            after = objective(logits + length * moved, weight + length * change)
            short = after > value + 1e-4 * length * down + ROUNDING * value
            if not short.any():
                break
            length = torch.where(short, length / 2, length)
        length = torch.where(after < value, length, 0)  # all that is left is rounding
        logits, weight = logits.add_(length * moved), weight + length * change
        before, value = value, torch.minimum(after, value)
        if (before - value).sum() < TOLERANCE * value.sum():
            break
        old, slope = slope, gradient(logits, weight)
        step, bend = length * direction, slope - old
        steps = [*steps, (step, bend, 1 / dot(step, bend).clamp_min(1e-12))][-HISTORY:]
    return weight


def _direction(
    slope: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], dot: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The two-loop recursion of L-BFGS (Nocedal & Wright, algorithm 7.4), the Hessian scaled to the identity."""
    direction, shares = -slope, []
    for step, bend, inverse in reversed(steps):
        shares.append(inverse * dot(step, direction))
        direction = direction - shares[-1] * bend
    for (step, bend, inverse), share in zip(steps, reversed(shares), strict=True):
        direction = direction + step * (share - inverse * dot(bend, direction))
    return direction


def loss_by_class(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Mean over clips of the binary cross-entropy of each class [C], or of the cross-entropy []. [n, C] float each."""
    if multi_label:
        return (F.softplus(logits).sum(dim=0) - (logits * targets).sum(dim=0)) / len(logits)
    return F.cross_entropy(logits, targets)
