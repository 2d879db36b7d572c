"""SSAST: recognise and reconstruct the masked patches (Gong et al., 2022, arXiv:2110.09784).

The encoder sees all positions, with one learned embedding in place of each masked patch: no patch is left out, so a
step costs more than that of a masked autoencoder. Both terms are computed of the same masks; the authors draw them
separately.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.config import PATCH, Config
from ajepa.model.flops import BACKWARD, encoder_pass, split_patches
from ajepa.model.losses import in_float32
from ajepa.model.vit import gather
from ajepa.objectives.base import Objective, Output, repeated_patches

GENERATIVE_WEIGHT = 10.0


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PATCH**2))


class SSAST(Objective):
    """InfoNCE between predictions and patches of one clip, and ten times the error of the reconstruction."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.model.width).normal_(std=0.02))
        self.discriminative, self.generative = head(config.model.width), head(config.model.width)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """InfoNCE + 10 * squared error. Predictions are those of the generative head, targets the patches' values."""
        patches = repeated_patches(log_mel, context)
        encoder, (batch, total) = self.context_encoder, patches.shape[:2]
        masked = torch.zeros(batch, total, dtype=torch.bool, device=patches.device).scatter(1, targets, True)
        embedded = torch.where(masked[..., None], self.mask_embedding, encoder.patch_embed(patches))
        tokens = encoder.transform(embedded + encoder.positions_for(total))
        assert isinstance(tokens, Tensor)
        tokens, target = gather(tokens, targets), gather(patches, targets)
        prediction = self.generative(tokens)
        found, made, values = in_float32(self.discriminative(tokens), prediction, target)
        with torch.autocast(log_mel.device.type, enabled=False):
            recognition = info_nce(found, values)
        reconstruction = (made - values).square().mean(dim=-1)
        errors = recognition + GENERATIVE_WEIGHT * reconstruction
        terms = {"info_nce": recognition.detach().mean(), "reconstruction": reconstruction.detach().mean()}
        return Output(errors.mean(), errors.detach(), prediction, target, terms)

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        model, masks = config.model, config.train.masks_per_clip
        _, masked = split_patches(config)
        heads = 2 * 2 * masked * (model.width**2 + model.width * PATCH**2)
        scores = 2 * masked**2 * PATCH**2
        return {
            "context_encoder": masks * encoder_pass(model, model.num_patches, trained=True),
            "heads": masks * ((1 + BACKWARD) * heads + 2 * scores),  # patches have no gradient
        }


def info_nce(prediction: Tensor, target: Tensor) -> Tensor:
    """Of each masked patch the negative log-probability of its own prediction among those of its clip: [B, M, 256]
    each -> [B, M]. Neither is normalised, and there is no temperature, as in the authors' code."""
    scores = target @ prediction.transpose(1, 2)  # [B, M of patches, M of predictions]
    return -F.log_softmax(scores, dim=-1).diagonal(dim1=1, dim2=2)
