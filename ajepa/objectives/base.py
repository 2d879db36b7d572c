"""What every objective is: an encoder, a loss of masked patches, and what it does around a step.

Shape legend: B clips, m masks of each, N patches of the window, K visible patches, M masked patches, D width.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ajepa.choices import Branch
from ajepa.config import Config
from ajepa.model.optimizer import ema_update
from ajepa.model.vit import Encoder, patchify


class Output(NamedTuple):
    """Of one forward pass. A tuple of tensors: DDP and torch.compile take it apart."""

    loss: Tensor  # scalar
    errors: Tensor  # [B * m, M]: the part of the loss that each masked patch has, detached
    prediction: Tensor  # [B * m, M, P]
    target: Tensor  # [B * m, M, P], or what the objective says
    terms: dict[str, Tensor]  # named parts of the loss, scalars, detached; {} where it has one


class Objective(nn.Module):
    """An encoder and what trains it. The training step, checkpoints and exports know no more than this class.

    A subclass adds its modules after `super().__init__`: so the encoder of every objective starts from the same
    weights with the same seed. Everything it draws is a function of the seed and the step.
    """

    evaluated: ClassVar[Branch] = "context"
    """The encoder that is evaluated and exported by default: as the method's own authors do."""
    whole_share: ClassVar[bool] = False
    """Whether the loss is of the batch as a whole, so that no part of it can be computed alone."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.context_encoder = Encoder(config.model)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is evaluated."""
        encoder = self.get_submodule(f"{self.evaluated}_encoder")
        assert isinstance(encoder, Encoder)
        return encoder

    @property
    def has_teacher(self) -> bool:
        """Whether an encoder follows the trained one."""
        return hasattr(self, "target_encoder")

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """One loss.

        Args:
            log_mel: [B, n_mels, crop_frames], normalised.
            context: [B * m, K] visible patches of m masks per clip, the masks of a clip in succession.
            targets: [B * m, M] masked patches.
        """
        raise NotImplementedError

    def begin_step(self, step: int) -> None:
        """Draw what the step needs. Called before every step; by default nothing."""

    def end_step(self, momentum: float) -> None:
        """Follow the update of the trained parameters: by default target <- momentum * target + (1 - momentum) *
        context, in place, where there is a teacher (spec 4). `momentum`: at this step (spec 8)."""
        if self.has_teacher:
            ema_update(self.get_submodule("target_encoder"), self.context_encoder, momentum)

    def metrics(self, output: Output) -> dict[str, Tensor]:
        """Scalars of a report: by default the standard deviations over masked patches, mean over dimensions."""
        prediction, target = (t.detach().float().flatten(0, 1).std(dim=0).mean() for t in output[2:4])
        return {"prediction_std": prediction, "target_std": target} | output.terms

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        """FLOPs of a clip in one training step, forward and backward, by part: see `ajepa.model.flops`."""
        raise NotImplementedError

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer updates."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


def per_mask(context: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """What each clip has, once for each of its masks: context [B * m, K], tensors [B, ...] -> [B * m, ...] each."""
    masks = len(context) // len(tensors[0])
    return tuple(t.repeat_interleave(masks, dim=0) for t in tensors) if masks > 1 else tensors


def repeated_patches(log_mel: Tensor, context: Tensor) -> Tensor:
    """The patches of each clip once for each of its masks: [B, n_mels, frames], [B * m, K] -> [B * m, N, 256]."""
    return per_mask(context, patchify(log_mel))[0]


def mean_of(errors: Tensor, prediction: Tensor, target: Tensor) -> Output:
    """The output of a loss that is the mean over masked patches."""
    return Output(errors.mean(), errors.detach(), prediction, target, {})
