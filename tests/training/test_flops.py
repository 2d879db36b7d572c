"""FLOPs of a step against PyTorch's own counter, and what is derived from them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ajepa.config import PRESETS, Config, MaskConfig, ModelConfig, TrainConfig
from ajepa.objectives import eat
from ajepa.objectives.registry import OBJECTIVES, build_objective
from ajepa.training.flops import gemm_rate, step_flops
from ajepa.training.inputs import mask_batch

SMALL = Config(
    model=ModelConfig(
        crop_frames=128, depth=2, width=64, heads=4, mlp_ratio=3, predictor_depth=3, predictor_width=24,
        predictor_heads=2,
    ),
    mask=MaskConfig(mask_ratio=0.6),
)  # fmt: skip


def counted(config: Config, batch: int = 2) -> dict[str, int]:
    """FLOPs of one clip by module, forward and backward, and "total", as PyTorch counts them.
    Attention is decomposed: the fused kernels recompute."""
    model = build_objective(config)
    context, targets = mask_batch(config, np.arange(batch), 100)
    log_mel = torch.randn(batch, 128, config.model.crop_frames)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(log_mel, context, targets).loss.backward()
    name = type(model).__name__
    by_module = {module: sum(ops.values()) // batch for module, ops in counter.get_flop_counts().items()}
    parts = {part: by_module[f"{name}.{part}"] for part, _ in model.named_children() if f"{name}.{part}" in by_module}
    return parts | {"total": counter.get_total_flops() // batch}


def objective(name: str, **train) -> Config:
    return dataclasses.replace(SMALL, train=TrainConfig(objective=name, **train))


@pytest.mark.parametrize(
    "config",
    [
        *(objective(name) for name in OBJECTIVES),
        *(objective(name, masks_per_clip=3) for name in OBJECTIVES),
        objective("jepa", target_layers=2),
        PRESETS["nano"],
        PRESETS["tiny"],
    ],
    ids=lambda c: f"{c.train.objective} {c.model.depth} {c.train.masks_per_clip} {c.train.target_layers}",
)
def test_each_part_agrees_with_pytorchs_counter(config, monkeypatch):
    # PyTorch's counter takes the gradient of a grouped convolution's weights for that of an ungrouped one.
    monkeypatch.setattr(eat, "GROUPS", 1)
    ours, theirs = OBJECTIVES[config.train.objective].flops(config), counted(config)
    assert step_flops(config) == sum(ours.values()) == pytest.approx(theirs.pop("total"), rel=0.01)
    # A module that is called twice gets the backward pass of what is called between from the counter.
    seen = ours.keys() & theirs.keys() - ({"context_encoder"} if config.train.objective == "lejepa" else set())
    assert {part: ours[part] for part in seen} == pytest.approx({part: theirs[part] for part in seen}, rel=0.01)
    # The encoder of SSAST takes embedded patches past its `forward`, which is where modules are counted.
    assert "context_encoder" in seen or config.train.objective in ("ssast", "lejepa")


def test_a_base_step_costs_what_it_should():
    # 86 M parameters on 512 patches once forward and on 154 three times, and the predictor: about 0.2 TFLOP a clip.
    assert step_flops(PRESETS["base"]) == pytest.approx(212e9, rel=0.05)


@pytest.mark.parametrize("name", ["jepa", "eat"])
def test_more_masks_share_one_target_pass(name):
    one, four = (OBJECTIVES[name].flops(objective(name, masks_per_clip=m)) for m in (1, 4))
    assert four.pop("target_encoder") == one.pop("target_encoder")
    assert four == {part: 4 * flops for part, flops in one.items()}


def test_gemm_rate_is_a_rate():
    assert 1e8 < gemm_rate(torch.device("cpu"), torch.float32, size=256) < 1e15
