"""FLOPs of a step against PyTorch's own counter, and what is derived from them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ajepa.config import PRESETS, Config, MaskConfig, ModelConfig, TrainConfig
from ajepa.model.ajepa import build_model
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
    """FLOPs of one clip by module, as PyTorch counts them from shapes alone. Attention is decomposed: the fused kernels
    recompute."""
    model = build_model(config).to("meta")
    context, targets = (indices.to("meta") for indices in mask_batch(config, np.arange(batch), 100))
    log_mel = torch.empty(batch, 128, config.model.crop_frames, device="meta")
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss, _, _ = model(log_mel, context, targets)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    by_module = {name: sum(ops.values()) // batch for name, ops in forward.get_flop_counts().items()}
    return {
        "target_forward": by_module["AJEPA.target_encoder"],
        "context_forward": by_module["AJEPA.context_encoder"],
        "predictor_forward": by_module["AJEPA.predictor"],
        "backward": backward.get_total_flops() // batch,
        "total": (forward.get_total_flops() + backward.get_total_flops()) // batch,
    }


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, train=TrainConfig(masks_per_clip=3)),
        dataclasses.replace(SMALL, train=TrainConfig(target_layers=2)),
        PRESETS["nano"],
        pytest.param(PRESETS["tiny"], id="tiny"),
    ],
)
def test_each_part_agrees_with_pytorchs_counter(config):
    ours, theirs = step_flops(config), counted(config)
    for part in ("target_forward", "context_forward", "predictor_forward", "total"):
        assert getattr(ours, part) == pytest.approx(theirs[part], rel=0.01), part
    assert ours.context_backward + ours.predictor_backward == pytest.approx(theirs["backward"], rel=0.01)


def test_a_base_step_costs_what_it_should():
    # 86 M parameters on 512 patches once forward and on 154 three times, and the predictor: about 0.2 TFLOP a clip.
    assert step_flops(PRESETS["base"]).total == pytest.approx(212e9, rel=0.05)


def test_more_masks_share_one_target_pass():
    one, four = (step_flops(dataclasses.replace(SMALL, train=TrainConfig(masks_per_clip=m))) for m in (1, 4))
    assert four.target_forward == one.target_forward
    assert four.context_backward == 4 * one.context_backward and four.predictor_forward == 4 * one.predictor_forward


def test_gemm_rate_is_a_rate():
    assert 1e8 < gemm_rate(torch.device("cpu"), torch.float32, size=256) < 1e15
