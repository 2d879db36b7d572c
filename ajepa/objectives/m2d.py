"""M2D: the teacher sees the masked patches alone (Niizumi et al., 2023, arXiv:2210.14648)."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from ajepa.config import Config
from ajepa.model.flops import encoder_pass, masked_passes, split_patches
from ajepa.model.losses import in_float32
from ajepa.model.optimizer import ema_update
from ajepa.model.vit import Predictor
from ajepa.objectives.base import Objective, Output, mean_of, repeated_patches

EPSILON = 1e-6  # of the standardised targets


class M2D(Objective):
    """Predict, from the visible patches, what a teacher that sees only the masked ones makes of them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.predictor = Predictor(config.model)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """2 - 2 * cosine between predictions and standardised targets, [B * m, M, D] each."""
        patches = repeated_patches(log_mel, context)
        with torch.no_grad():
            target = self.target_encoder(patches, targets)
            target = F.layer_norm(target, target.shape[-1:], eps=EPSILON)
        prediction = self.predictor(self.context_encoder(patches, context), context, targets)
        a, b = in_float32(prediction, target)
        return mean_of(2 - 2 * F.cosine_similarity(a, b, dim=-1), prediction, target)

    def end_step(self, momentum: float) -> None:
        """The teacher's blocks and norm are averages; patch embedding and positions are the trained encoder's."""
        teacher, student = self.target_encoder, self.context_encoder
        ema_update(teacher.blocks, student.blocks, momentum)
        ema_update(teacher.norm, student.norm, momentum)
        with torch.no_grad():
            for own, other in (
                (teacher.positions, student.positions),
                *zip(teacher.patch_embed.parameters(), student.patch_embed.parameters(), strict=True),
            ):
                own.copy_(other)

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        _, masked = split_patches(config)
        teacher = config.train.masks_per_clip * encoder_pass(config.model, masked, trained=False)
        return {"target_encoder": teacher} | masked_passes(config, config.model.width)
