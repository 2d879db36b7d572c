"""A-JEPA: context encoder, EMA target encoder and predictor (spec 1)."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ajepa.config import Config
from ajepa.model.losses import normalise_targets, prediction_loss
from ajepa.model.optimizer import ema_update
from ajepa.model.vit import Encoder, Predictor, gather, patchify


class AJEPA(nn.Module):
    """Predict the target encoder's representations of masked patches from the visible ones.

    Only the context encoder and the predictor are trained; the target encoder follows by `update_target`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = Encoder(config.model)
        self.predictor = Predictor(config.model)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One loss.

        Args:
            log_mel: [B, n_mels, crop_frames], normalised.
            context: [B * m, K] visible patches of m masks per clip, the masks of a clip in succession.
            targets: [B * m, M] masked patches.

        Returns:
            loss (scalar), predictions and targets [B * m, M, D].
        """
        patches = patchify(log_mel)
        target = self.targets(patches)
        masks = len(context) // len(patches)
        if masks > 1:
            patches = patches.repeat_interleave(masks, dim=0)
            target = target.repeat_interleave(masks, dim=0)
        prediction = self.predictor(self.context_encoder(patches, context), context, targets)
        target = gather(target, targets)
        train = self.config.train
        return prediction_loss(prediction, target, train.loss, train.smooth_l1_beta), prediction, target

    @torch.no_grad()
    def targets(self, patches: Tensor) -> Tensor:
        """Normalised target representations of every patch, [B, N, 256] -> [B, N, D]; no gradient."""
        train = self.config.train
        return normalise_targets(self.target_encoder(patches, last_layers=train.target_layers), train.target_norm)

    def update_target(self, momentum: float) -> None:
        """target <- momentum * target + (1 - momentum) * context, in place (spec 4)."""
        ema_update(self.target_encoder, self.context_encoder, momentum)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def build_model(config: Config) -> AJEPA:
    """A freshly initialised model; the weights depend on config.train.seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return AJEPA(config)
