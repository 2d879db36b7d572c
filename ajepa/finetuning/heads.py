"""The head's start: the linear probe on the frozen encoder's features (LP-FT, Kumar et al., arXiv:2202.10054)."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C


def probe_head(
    features: np.ndarray, targets: np.ndarray, train: np.ndarray, validation: np.ndarray, final: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(weight [C, D], bias [C]) of a probe trained on the rows `final`, its penalty chosen with `train` on
    `validation`. Standardising is folded in."""
    labels = targets.argmax(axis=1)

    def fit(strength: float, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, std = features[rows].mean(axis=0), np.maximum(features[rows].std(axis=0), 1e-6)
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit((features[rows] - mean) / std, labels[rows])
        weight = np.zeros((targets.shape[1], features.shape[1]))
        bias = np.full(targets.shape[1], -10.0)
        weight[model.classes_] = model.coef_ / std
        bias[model.classes_] = model.intercept_ - (model.coef_ / std) @ mean
        return weight, bias

    def accuracy(strength: float) -> float:
        weight, bias = fit(strength, train)
        return float(((features[validation] @ weight.T + bias).argmax(axis=1) == labels[validation]).mean())

    weight, bias = fit(max(STRENGTHS, key=accuracy), final)
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
