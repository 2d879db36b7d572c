"""Masked autoencoder: predict the log-mel of the masked patches.

Audio-MAE (Huang, Xu et al., 2022, arXiv:2207.06405) with the decoder that attends to all patches; MaskSpec (Chong et
al., 2022, arXiv:2204.12768) is the same loss with other masks.
"""

import torch
from torch import Tensor

from ajepa.config import PATCH, Config
from ajepa.model.flops import masked_passes
from ajepa.model.losses import in_float32
from ajepa.model.vit import Predictor, gather
from ajepa.objectives.base import Objective, Output, mean_of, repeated_patches

EPSILON = 1e-6  # added to the variance of a patch


class MAE(Objective):
    """Encode the visible patches, decode the values of the masked ones."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.predictor = Predictor(config.model, outputs=PATCH**2)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """Mean squared error of masked patches, each standardised by its own mean and variance: [B * m, M, 256]."""
        patches = repeated_patches(log_mel, context)
        prediction = self.predictor(self.context_encoder(patches, context), context, targets)
        target = standardised(gather(patches, targets))
        a, b = in_float32(prediction, target)
        return mean_of((a - b).square().mean(dim=-1), prediction, target)

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        return masked_passes(config, PATCH**2)


def standardised(patches: Tensor) -> Tensor:
    """Each patch [.., 256] less its mean, over its standard deviation (the unbiased one, as Audio-MAE has it)."""
    mean, variance = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / torch.sqrt(variance + EPSILON)
