"""A-JEPA: predict an EMA encoder's representations of the masked patches (spec 1)."""

import copy
from typing import ClassVar

import torch
from torch import Tensor

from ajepa.choices import Branch
from ajepa.config import Config
from ajepa.model.flops import encoder_pass, masked_passes
from ajepa.model.losses import normalise_targets, prediction_errors
from ajepa.model.vit import Predictor, gather, patchify
from ajepa.objectives.base import Objective, Output, mean_of, per_mask


class AJEPA(Objective):
    """Predict the target encoder's representations of masked patches from the visible ones.

    Only the context encoder and the predictor are trained; the target encoder follows them.
    """

    evaluated: ClassVar[Branch] = "target"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.predictor = Predictor(config.model)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """Loss of the representations of masked patches (spec 7); predictions and targets are [B * m, M, D]."""
        patches = patchify(log_mel)
        patches, target = per_mask(context, patches, self.targets(patches))  # the teacher runs once for all masks
        prediction = self.predictor(self.context_encoder(patches, context), context, targets)
        target = gather(target, targets)
        train = self.config.train
        return mean_of(prediction_errors(prediction, target, train.loss, train.smooth_l1_beta), prediction, target)

    @torch.no_grad()
    def targets(self, patches: Tensor) -> Tensor:
        """Normalised target representations of every patch, [B, N, 256] -> [B, N, D]; no gradient."""
        train = self.config.train
        return normalise_targets(self.target_encoder(patches, last_layers=train.target_layers), train.target_norm)

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        model = config.model
        teacher = encoder_pass(model, model.num_patches, trained=False)  # once for all masks
        return {"target_encoder": teacher} | masked_passes(config, model.width)
