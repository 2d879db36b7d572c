"""BEATs, iteration 1: predict the codes that a random projection gives the masked patches (Chen et al., 2022,
arXiv:2212.09058).

Where the authors feed their label predictor zeros at masked places, ours has mask tokens; the encoder is the one of all
objectives here, without relative positions and DeepNorm. There is nothing that could collapse but the codes: their
perplexity is a metric.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.config import PATCH, Config
from ajepa.model.flops import masked_passes, split_patches
from ajepa.model.losses import in_float32
from ajepa.model.vit import Predictor, gather
from ajepa.objectives.base import Objective, Output, repeated_patches

CODES, EMBEDDING, CODE_WIDTH = 1024, 512, 256


class RandomProjection(nn.Module):
    """A frozen tokenizer: patches [.., 256] to the index of the nearest of 1024 random codes [..]."""

    embed: Tensor
    project: Tensor
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embed", nn.init.xavier_normal_(torch.empty(EMBEDDING, PATCH**2)))
        self.register_buffer("project", nn.init.xavier_normal_(torch.empty(CODE_WIDTH, EMBEDDING)))
        self.register_buffer("codes", torch.randn(CODES, CODE_WIDTH))

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            hidden = F.layer_norm(F.linear(patches.to(self.embed.dtype), self.embed), (EMBEDDING,))
            hidden = F.layer_norm(F.linear(hidden, self.project), (CODE_WIDTH,))
            # Squared distance less the patch's own length, which no choice changes.
            return (self.codes.square().sum(dim=1) - 2 * F.linear(hidden, self.codes)).argmin(dim=-1)


class BEATs(Objective):
    """Cross-entropy of the masked patches' codes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.predictor = Predictor(config.model, outputs=CODES)
        self.tokenizer = RandomProjection()

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """Predictions are logits [B * m, M, 1024], targets codes [B * m, M]."""
        patches = repeated_patches(log_mel, context)
        logits = self.predictor(self.context_encoder(patches, context), context, targets)
        codes = self.tokenizer(gather(patches, targets))
        (scores,) = in_float32(logits)
        errors = F.cross_entropy(scores.transpose(1, 2), codes, reduction="none")
        return Output(errors.mean(), errors.detach(), logits, codes, {})

    def metrics(self, output: Output) -> dict[str, Tensor]:
        """Perplexity of the codes, 1 to 1024, and the share of them that are predicted."""
        share = torch.bincount(output.target.flatten(), minlength=CODES).float() / output.target.numel()
        return {
            "code_perplexity": torch.special.entr(share).sum().exp(),
            "code_accuracy": (output.prediction.detach().argmax(dim=-1) == output.target).float().mean(),
        }

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        _, masked = split_patches(config)
        codes = 2 * masked * (PATCH**2 * EMBEDDING + EMBEDDING * CODE_WIDTH + CODE_WIDTH * CODES)
        return masked_passes(config, CODES) | {"tokenizer": config.train.masks_per_clip * codes}
