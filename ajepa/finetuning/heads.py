"""The head's start: the linear probe on the frozen encoder's features (LP-FT, Kumar et al., arXiv:2202.10054)."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C


@dataclass(frozen=True)
class ProbeHead:
    """A linear layer on features standardised with `shift` and `scale`."""

    weight: np.ndarray  # [C, D]
    bias: np.ndarray  # [C]
    shift: np.ndarray  # [D]
    scale: np.ndarray  # [D]

    def logits(self, features: np.ndarray) -> np.ndarray:
        return (features - self.shift) / self.scale @ self.weight.T + self.bias

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arrays = (self.weight, self.bias, self.shift, self.scale)
        weight, bias, shift, scale = (torch.from_numpy(array).float() for array in arrays)
        return weight, bias, shift, scale


def probe_head(
    features: np.ndarray, targets: np.ndarray, train: np.ndarray, validation: np.ndarray, final: np.ndarray
) -> ProbeHead:
    """A probe trained on the rows `final`, its penalty chosen with `train` on `validation`."""
    labels = targets.argmax(axis=1)

    def fit(strength: float, rows: np.ndarray) -> ProbeHead:
        shift, scale = features[rows].mean(axis=0), np.maximum(features[rows].std(axis=0), 1e-6)
        known = (features[rows] - shift) / scale
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(known, labels[rows])
        weight, bias = np.zeros((targets.shape[1], features.shape[1])), np.full(targets.shape[1], -10.0)
        if len(model.classes_) == 2:
            weight[model.classes_], bias[model.classes_] = (
                [-model.coef_[0] / 2, model.coef_[0] / 2], [-model.intercept_[0] / 2, model.intercept_[0] / 2]
            )  # fmt: skip
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        return ProbeHead(weight, bias, shift, scale)

    def accuracy(strength: float) -> float:
        chosen = fit(strength, train).logits(features[validation]).argmax(axis=1)
        return float((chosen == labels[validation]).mean())

    return fit(max(STRENGTHS, key=accuracy), final)
