"""LeJEPA's regulariser in place of the EMA teacher (Balestriero & LeCun, 2025, arXiv:2511.08544).

The encoder's own representations of the whole clip are the targets, with gradient, no teacher and no schedule. SIGReg
keeps them from collapsing: along random directions they are to be distributed as a standard normal variable. LeJEPA
compares views of an image; here the views are the visible patches, from which the masked ones are predicted, and the
whole clip. SIGReg takes the projections of all patches of the batch. The projector has LayerNorm where LeJEPA's has
BatchNorm.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.config import Config
from ajepa.model.flops import BACKWARD, encoder_pass, masked_passes
from ajepa.model.losses import in_float32
from ajepa.model.vit import Predictor, gather, patchify
from ajepa.objectives.base import Objective, Output, per_mask

WEIGHT = 0.05  # of SIGReg; the prediction has the rest
DIRECTIONS = 64  # new ones in every step
KNOTS, FARTHEST = 17, 3.0  # of the characteristic function, on [0, FARTHEST]
OUTPUTS = 64  # dimensions of a projection
HIDDEN = 4  # width of the projector's hidden layers over the encoder's


class LeJEPA(Objective):
    """Predict the projections of masked patches that the same encoder makes of the whole clip."""

    directions: Tensor
    whole_share = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.model.width
        self.predictor = Predictor(config.model, outputs=OUTPUTS)
        self.projector = nn.Sequential(
            nn.Linear(width, HIDDEN * width), nn.LayerNorm(HIDDEN * width), nn.GELU(),
            nn.Linear(HIDDEN * width, OUTPUTS),
        )  # fmt: skip
        self.register_buffer("directions", draw_directions(config.train.seed, 0), persistent=False)

    def begin_step(self, step: int) -> None:
        """New directions, the same on every worker."""
        drawn = draw_directions(self.config.train.seed, step)
        # From pinned memory the copy is only enqueued: the host does not wait for the device.
        on_gpu = self.directions.is_cuda
        self.directions.copy_(drawn.pin_memory() if on_gpu else drawn, non_blocking=on_gpu)

    def forward(self, log_mel: Tensor, context: Tensor, targets: Tensor) -> Output:
        """WEIGHT * SIGReg + (1 - WEIGHT) * squared error; predictions and targets are [B * m, M, OUTPUTS]."""
        patches = patchify(log_mel)
        whole = self.projector(self.context_encoder(patches))
        (projections,) = in_float32(whole)
        with torch.autocast(log_mel.device.type, enabled=False):
            spread = sigreg(projections.flatten(0, 1), self.directions.to(projections.dtype))
        patches, whole = per_mask(context, patches, whole)
        prediction = self.predictor(self.context_encoder(patches, context), context, targets)
        target = gather(whole, targets)
        a, b = in_float32(prediction, target)
        errors = (1 - WEIGHT) * (a - b).square().mean(dim=-1)
        terms = {"sigreg": spread.detach(), "prediction_loss": errors.detach().mean() / (1 - WEIGHT)}
        return Output(WEIGHT * spread + errors.mean(), errors.detach(), prediction, target, terms)

    @classmethod
    def flops(cls, config: Config) -> dict[str, int]:
        model, passes = config.model, masked_passes(config, OUTPUTS)
        patches, hidden = model.num_patches, HIDDEN * model.width
        projector = 2 * patches * (model.width * hidden + hidden * OUTPUTS)
        return {
            "context_encoder": encoder_pass(model, patches, trained=True) + passes["context_encoder"],
            "predictor": passes["predictor"],
            "projector": (1 + BACKWARD) * projector,
            "sigreg": 2 * 2 * patches * OUTPUTS * DIRECTIONS,  # directions have no gradient
        }


def draw_directions(seed: int, step: int) -> Tensor:
    """Unit vectors [OUTPUTS, DIRECTIONS], a function of the seed and the step."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
    return F.normalize(torch.randn(OUTPUTS, DIRECTIONS, generator=generator), dim=0)


def sigreg(values: Tensor, directions: Tensor) -> Tensor:
    """How far values [n, P] are from a standard normal distribution, along directions [P, S]: a scalar.

    For each direction the squared distance between the empirical characteristic function and exp(-t^2 / 2), weighted
    with the latter and integrated over t in [-3, 3] by the trapezoidal rule, times n (the statistic of Epps and
    Pulley). With several workers n are the values of all of them, and the gradient is that of the whole batch.
    """
    t = torch.linspace(0, FARTHEST, KNOTS, dtype=values.dtype, device=values.device)
    normal = torch.exp(-t.square() / 2)
    spacing = 2 * FARTHEST / (KNOTS - 1)  # both halves of the symmetric integral
    weights = F.pad(torch.full_like(t[2:], spacing), (1, 1), value=spacing / 2) * normal
    angles = (values @ directions).unsqueeze(-1) * t  # [n, S, KNOTS]
    sums = torch.stack([angles.cos().sum(dim=0), angles.sin().sum(dim=0)])
    count = torch.full((), float(len(values)), dtype=values.dtype, device=values.device)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_reduce  # its import makes a temporary folder of modules

        sums = all_reduce(sums)
        dist.all_reduce(count)
    cosine, sine = sums / count
    distance = (cosine - normal).square() + sine.square()  # [S, KNOTS]
    return (distance * weights).sum(dim=-1).mean() * count
