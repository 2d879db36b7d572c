"""EAT: the mean of all of a teacher's layers, for each masked patch and for the clip (Chen et al., 2024,
arXiv:2401.03497), on the targets and the decoder of data2vec 2.0 (Baevski et al., 2022, arXiv:2212.07525).

Where the authors have a class token for the clip, ours is the mean of the visible patches, which is also what an
embedding here is. Masked places hold zeros where theirs hold noise of deviation 0.01: nothing is drawn in a step.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.config import Config
from ajepa.model.flops import BACKWARD, encoder_pass, split_patches
from ajepa.model.losses import in_float32, normalise_targets
from ajepa.model.vit import gather, patchify
from ajepa.objectives.base import Objective, Output, per_mask

LAYERS, GROUPS, KERNEL = 6, 16, 3  # of the decoder
CLIP_WEIGHT = 1.0  # of the loss of the clip


class ConvDecoder(nn.Module):
    """Convolutions over the grid of patches: visible representations in, predictions of masked patches out."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        groups = math.gcd(width, GROUPS)
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, KERNEL, padding="same", groups=groups) for _ in range(LAYERS)
        )
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """[B, K, D], [B, K], [B, M] -> [B, M, D]."""
        batch, _, width = tokens.shape
        places = context.unsqueeze(-1).expand(-1, -1, width)
        plane = tokens.new_zeros(batch, math.prod(self.grid), width).scatter(1, places, tokens)
        plane = plane.transpose(1, 2).reshape(batch, width, *self.grid)
        for layer in self.layers:
            # LayerNorm over channels
            made = layer(plane).movedim(1, -1)
            plane = plane + F.gelu(F.layer_norm(made, (width,))).movedim(-1, 1)
        return self.project(gather(plane.flatten(2).transpose(1, 2), targets))


class EAT(Objective):
    """Predict a teacher's layers, of masked patches by a decoder and of the clip from the mean of visible ones."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.model.width
        self.decoder = ConvDecoder(width, config.model.grid)
        self.clip_head = nn.Linear(width, width)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """(Squared error of masked patches + that of clips) / sqrt(D); predictions and targets are [B * m, M, D]."""
        patches = patchify(log_mel)
        patches, whole = per_mask(context, patches, self.targets(patches))  # the teacher runs once for all masks
        tokens = self.context_encoder(patches, context)
        prediction, target = self.decoder(tokens, context, targets), gather(whole, targets)
        a, b, c, d = in_float32(prediction, target, self.clip_head(tokens.mean(dim=1)), whole.mean(dim=1))
        scale = 1 / math.sqrt(self.config.model.width)
        of_patches = scale * (a - b).square().mean(dim=-1)  # [B * m, M]
        of_clips = scale * (c - d).square().mean(dim=-1)  # [B * m]
        loss = of_patches.mean() + CLIP_WEIGHT * of_clips.mean()
        terms = {"patch_loss": of_patches.detach().mean(), "clip_loss": of_clips.detach().mean()}
        return Output(loss, of_patches.detach(), prediction, target, terms)

    @torch.no_grad()
    def targets(self, patches: Tensor) -> Tensor:
        """Mean over layers, each dimension standardised over the patches of a clip; layer-normed. [B, N, D]."""
        depth = self.config.model.depth
        return normalise_targets(self.target_encoder(patches, last_layers=depth), "instance")

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        model, masks = config.model, config.train.masks_per_clip
        visible, masked = split_patches(config)
        width = model.width
        layer = 2 * model.num_patches * KERNEL**2 * width * (width // math.gcd(width, GROUPS))
        decoder = LAYERS * layer + 2 * masked * width**2
        return {
            "target_encoder": encoder_pass(model, model.num_patches, trained=False),
            "context_encoder": masks * encoder_pass(model, visible, trained=True),
            "decoder": masks * (1 + BACKWARD) * decoder,
            "clip_head": masks * (1 + BACKWARD) * 2 * width**2,
        }
