"""What a training step costs in theory and what the device can do, so that a run can say how well it uses it.

MFU = clips a second of one worker * step_flops(config).total / gemm_rate(device, dtype).
"""

import time
from dataclasses import dataclass

import torch

from ajepa.config import PATCH, Config
from ajepa.model.masking import target_count

CPU_SIZE, GPU_SIZE = 1024, 4096  # sides of the square matrices gemm_rate multiplies
GPU_LAUNCHES = 20  # products between two synchronisations, so that launching them costs nothing


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one clip in one training step; a multiply-add counts as two."""

    target_forward: int
    context_forward: int
    context_backward: int
    predictor_forward: int
    predictor_backward: int

    @property
    def total(self) -> int:
        return (
            self.target_forward
            + self.context_forward
            + self.context_backward
            + self.predictor_forward
            + self.predictor_backward
        )


def step_flops(config: Config) -> StepFlops:
    """FLOPs of all matrix products of a step, for one clip: linear layers, attention scores and values.

    Counted by formula, which a test holds to PyTorch's own counter: that one takes seconds to import (torch._dynamo).
    The usual model FLOPs of MFU (Chowdhery et al., 2022, app. B): a backward pass is two products for each of the
    forward pass, nothing is counted for recomputation, norms, activations, optimizer or EMA. The patch embedding
    has no gradient to hand on, so its backward pass is a single product.
    """
    model, masks = config.model, config.train.masks_per_clip
    patches = model.num_patches
    targets = target_count(config.mask, model.grid)
    visible = patches - targets
    width, narrow = model.width, model.predictor_width

    def blocks(tokens: int, depth: int, width: int) -> int:
        hidden = int(width * model.mlp_ratio)
        return depth * (2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width)

    def embedding(tokens: int) -> int:
        return 2 * tokens * PATCH**2 * width

    context = masks * blocks(visible, model.depth, width)
    predictor = masks * (
        2 * visible * width * narrow + blocks(patches, model.predictor_depth, narrow) + 2 * targets * narrow * width
    )
    return StepFlops(
        target_forward=embedding(patches) + blocks(patches, model.depth, width),
        context_forward=masks * embedding(visible) + context,
        context_backward=masks * embedding(visible) + 2 * context,
        predictor_forward=predictor,
        predictor_backward=2 * predictor,
    )


def gemm_rate(device: torch.device, dtype: torch.dtype, size: int | None = None, rounds: int = 5) -> float:
    """FLOP/s of a product of two square matrices: the best of `rounds`, after one that does not count.

    Args:
        device: where; on a CPU with the threads torch is set to.
        dtype: of the matrices: what the step multiplies in (see `autocast_dtype`).
        size: side of the matrices, 4096 by default on a GPU and 1024 (some hundredths of a second) on a CPU.
    """
    gpu = device.type == "cuda"
    size = size or (GPU_SIZE if gpu else CPU_SIZE)
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    launches = GPU_LAUNCHES if gpu else 1

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(launches):
            torch.mm(a, b)
        if gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    with torch.inference_mode():
        seconds()
        best = min(seconds() for _ in range(rounds))
    return launches * 2 * size**3 / best
