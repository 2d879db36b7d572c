"""The linear probe: one linear layer on frozen features, under cross-entropy or, for several labels a clip, under
binary cross-entropy, with an L2 penalty. Both are convex: there is one solution and no seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ajepa.evaluation.lbfgs import Minimiser

STRENGTHS = (10, 3, 1, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # L2 penalties tried, in this order
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
    return mean, safe_std(mean, std)


def safe_std(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
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
    here, with a free bias. It does so in the basis of the features' principal directions, which leaves the penalty as
    it is; directions that n clips do not span are dropped (the solution has none).

    Args:
        features: [n, D] of the training part.
        targets: [n, C] bool; one true in a row unless multi_label.
        strengths: scikit-learn's C is 1 / (strength * n).
    """
    mean, std = standardise(features)
    x = torch.from_numpy(((features - mean) / std).astype(np.float32)).to(device)
    rotated, basis, variance = _principal(x)
    del x
    rotated = torch.cat([rotated, torch.ones(len(rotated), 1, device=rotated.device)], dim=1)  # of the bias
    variance = torch.cat([variance, torch.ones(1, device=rotated.device)])
    offset, unit = (torch.from_numpy(v.astype(np.float32)).to(device) for v in (mean, std))
    minimiser = Minimiser(rotated, variance, torch.from_numpy(targets).to(device), multi_label)
    for strength in sorted(strengths, reverse=True):
        weight = minimiser.minimise(strength)
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
