"""Each objective's loss equals its equation, written out clip by clip and patch by patch in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ajepa.config import Config, MaskConfig, ModelConfig, TrainConfig
from ajepa.model.vit import Encoder
from ajepa.objectives.base import Objective
from ajepa.objectives.lejepa import WEIGHT, draw_directions, sigreg
from ajepa.objectives.registry import build_objective
from ajepa.training.inputs import mask_batch

MODEL = ModelConfig(
    crop_frames=64, depth=3, width=32, heads=4, predictor_depth=1, predictor_width=16, predictor_heads=2
)
CLIPS, MASKS = 2, 2


def build(name: str) -> tuple[Objective, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A model with weights away from their special first values, and inputs."""
    config = Config(
        model=MODEL, mask=MaskConfig(strategy="random"), train=TrainConfig(objective=name, masks_per_clip=MASKS)
    )
    model, generator = build_objective(config).double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    log_mel = torch.randn(CLIPS, 128, MODEL.crop_frames, generator=generator, dtype=torch.float64)
    return model, (log_mel, *mask_batch(config, np.arange(CLIPS), 100))


def each_mask(inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]):
    """(patches [N, 256] of the clip, visible, masked) of each mask."""
    log_mel, context, targets = inputs
    columns = MODEL.crop_frames // 16
    for i in range(CLIPS * MASKS):
        clip = log_mel[i // MASKS]
        patches = [
            clip[16 * r : 16 * r + 16, 16 * c : 16 * c + 16].reshape(-1) for r in range(8) for c in range(columns)
        ]
        yield torch.stack(patches), context[i].tolist(), targets[i].tolist()


def layers_of(encoder: Encoder, patches: torch.Tensor, places: list[int]) -> list[torch.Tensor]:
    """The outputs of all blocks [K, D] for the patches at some places, and last that of the final norm."""
    x = torch.stack([encoder.patch_embed(patches[i]) + encoder.positions[i] for i in places])[None]
    outputs = []
    for block in encoder.blocks:
        x = block(x)
        outputs.append(x[0])
    return [*outputs, encoder.norm(x)[0]]


def predicted(model: Objective, patches: torch.Tensor, visible: list[int], masked: list[int]) -> torch.Tensor:
    """What the predictor says of each masked patch, [M, P]."""
    predictor = model.predictor
    tokens = predictor.embed(layers_of(model.context_encoder, patches, visible)[-1])
    sequence = [t + predictor.positions[i] for t, i in zip(tokens, visible, strict=True)]
    sequence += [predictor.mask_token + predictor.positions[i] for i in masked]
    x = torch.stack(sequence)[None]
    for block in predictor.blocks:
        x = block(x)
    return predictor.project(predictor.norm(x[0, len(visible) :]))


def standardised(x: torch.Tensor, epsilon: float, ddof: int = 0) -> torch.Tensor:
    return (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - ddof) + epsilon)


def mae(model: Objective, patches, visible, masked) -> list[torch.Tensor]:
    return [
        ((p - standardised(patches[i], 1e-6, ddof=1)) ** 2).mean()
        for p, i in zip(predicted(model, patches, visible, masked), masked, strict=True)
    ]


def ssast(model: Objective, patches, visible, masked) -> list[torch.Tensor]:
    encoder = model.context_encoder
    seen = [model.mask_embedding if i in masked else encoder.patch_embed(patches[i]) for i in range(len(patches))]
    x = (torch.stack(seen) + encoder.positions)[None]
    for block in encoder.blocks:
        x = block(x)
    tokens = encoder.norm(x)[0]
    found = [model.discriminative(tokens[j]) for j in masked]
    errors = []
    for n, i in enumerate(masked):
        scores = torch.stack([patches[i] @ other for other in found])
        recognition = -(scores[n] - torch.logsumexp(scores, dim=0))
        errors.append(recognition + 10 * ((model.generative(tokens[i]) - patches[i]) ** 2).mean())
    return errors


def beats(model: Objective, patches, visible, masked) -> list[torch.Tensor]:
    tokenizer, errors = model.tokenizer, []
    for logits, i in zip(predicted(model, patches, visible, masked), masked, strict=True):
        hidden = standardised(tokenizer.embed @ patches[i], 1e-5)
        hidden = standardised(tokenizer.project @ hidden, 1e-5)
        code = min(range(len(tokenizer.codes)), key=lambda k: float(((tokenizer.codes[k] - hidden) ** 2).sum()))
        errors.append(torch.logsumexp(logits, dim=0) - logits[code])
    return errors


def m2d(model: Objective, patches, visible, masked) -> list[torch.Tensor]:
    errors = []
    targets = layers_of(model.target_encoder, patches, masked)[-1]
    for prediction, target in zip(predicted(model, patches, visible, masked), targets, strict=True):
        target = standardised(target, 1e-6)
        errors.append(2 - 2 * (prediction @ target) / (prediction.norm() * target.norm()))
    return errors


def eat_targets(model: Objective, patches) -> torch.Tensor:
    """[N, D]: each dimension of each layer standardised over patches, the mean over layers, layer-normed."""
    total = 0
    for layer in layers_of(model.target_encoder, patches, range(len(patches)))[:-1]:
        total = total + torch.stack([standardised(dimension, 1e-5) for dimension in layer.T], dim=1)
    return torch.stack([standardised(patch / MODEL.depth, 1e-5) for patch in total])


def eat(model: Objective, patches, visible, masked) -> list[torch.Tensor]:
    """The errors of patches, each with that of the clip: their mean is the loss."""
    tokens, targets = layers_of(model.context_encoder, patches, visible)[-1], eat_targets(model, patches)
    rows, columns = MODEL.grid
    plane = torch.zeros(1, MODEL.width, rows, columns, dtype=torch.float64)
    for token, i in zip(tokens, visible, strict=True):
        plane[0, :, i // columns, i % columns] = token
    for layer in model.decoder.layers:
        made = F.conv2d(F.pad(plane, (1, 1, 1, 1)), layer.weight, layer.bias, groups=16)
        residual = torch.zeros_like(plane)
        for r in range(rows):
            for c in range(columns):
                residual[0, :, r, c] = F.gelu(standardised(made[0, :, r, c], 1e-5))
        plane = plane + residual
    clip = ((model.clip_head(tokens.mean(dim=0)) - targets.mean(dim=0)) ** 2).mean()
    of_patches = [
        ((model.decoder.project(plane[0, :, i // columns, i % columns]) - targets[i]) ** 2).mean() for i in masked
    ]
    return [(error + clip) / math.sqrt(MODEL.width) for error in of_patches]


@pytest.mark.parametrize("equation", [mae, ssast, beats, m2d, eat], ids=lambda f: f.__name__)
def test_the_loss_equals_the_equation(equation):
    model, inputs = build(equation.__name__)
    output = model(*inputs)
    errors = torch.stack([torch.stack(equation(model, *mask)) for mask in each_mask(inputs)])
    torch.testing.assert_close(output.loss, errors.mean())
    if equation is not eat:  # whose errors of patches are without that of the clip
        torch.testing.assert_close(output.errors, errors.detach())


def test_lejepa_equals_the_equation():
    """SIGReg of all patches' projections, and the squared error between those and the predictions."""
    model, inputs = build("lejepa")
    model.begin_step(3)
    whole = [
        model.projector(layers_of(model.context_encoder, patches, range(len(patches)))[-1])
        for patches, _, _ in each_mask(inputs)
    ]
    errors = [
        ((p - projection[i]) ** 2).mean()
        for (patches, visible, masked), projection in zip(each_mask(inputs), whole, strict=True)
        for p, i in zip(predicted(model, patches, visible, masked), masked, strict=True)
    ]
    values = torch.cat(whole[::MASKS]).detach().numpy()  # each clip once
    expected = WEIGHT * epps_pulley(values, draw_directions(0, 3).numpy()) + (1 - WEIGHT) * float(
        torch.stack(errors).mean()
    )
    assert model(*inputs).loss.item() == pytest.approx(expected, rel=1e-9)


def epps_pulley(values: np.ndarray, directions: np.ndarray) -> float:
    """n times the integral of |characteristic function - exp(-t^2 / 2)|^2 exp(-t^2 / 2), a mean over directions."""
    t = np.linspace(-3, 3, 33)
    normal = np.exp(-(t**2) / 2)
    integrals = []
    for direction in directions.T:
        found = np.exp(1j * np.outer(t, values @ direction)).mean(axis=1)
        integrand = np.abs(found - normal) ** 2 * normal
        integrals.append(((integrand[1:] + integrand[:-1]) / 2 * np.diff(t)).sum())
    return float(len(values) * np.mean(integrals))


def test_sigreg_is_small_for_normal_values_and_large_for_a_point_or_a_plane():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 64, generator=generator)
    plane = normal * (torch.arange(64) < 2)
    of_normal, of_plane, of_point = (
        sigreg(x, draw_directions(0, 0)).item() for x in (normal, plane, torch.zeros_like(normal))
    )
    assert of_normal < 2 and of_plane > 100 * of_normal and of_point > of_plane


def test_new_directions_come_with_every_step_and_depend_on_the_seed():
    same, step, seed = draw_directions(1, 2), draw_directions(1, 3), draw_directions(2, 2)
    assert torch.equal(same, draw_directions(1, 2))
    assert not torch.equal(same, step) and not torch.equal(same, seed)
    torch.testing.assert_close(same.norm(dim=0), torch.ones(64))
