"""The head's start: the linear probe on the frozen encoder's features (LP-FT, Kumar et al., arXiv:2202.10054)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ajepa.evaluation.linear import standardise
from ajepa.evaluation.probe import choose_linear


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
    features: np.ndarray,
    targets: np.ndarray,
    multi_label: bool,
    train: np.ndarray,
    validation: np.ndarray,
    final: np.ndarray,
) -> ProbeHead:
    """A probe trained on the rows `final`, its penalty chosen with `train` on `validation`."""
    model, _ = choose_linear(features, targets > 0, multi_label, train, validation, final)
    shift, scale = standardise(features[final])
    raw = model.weight.double().cpu().numpy().T  # [C, D]
    return ProbeHead(raw * scale, model.bias.double().cpu().numpy() + raw @ shift, shift, scale)
