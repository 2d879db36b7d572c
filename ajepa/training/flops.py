"""What a training step costs in theory and what the device can do, so that a run can say how well it uses it.

MFU = clips a second of one worker * step_flops(config) / gemm_rate(device, dtype).
"""

import time

import torch

from ajepa.config import Config
from ajepa.objectives.registry import OBJECTIVES

CPU_SIZE, GPU_SIZE = 1024, 4096  # sides of the square matrices gemm_rate multiplies
GPU_LAUNCHES = 20  # products between two synchronisations, so that launching them costs nothing


def step_flops(config: Config) -> int:
    """FLOPs of all matrix products of a training step, for one clip; by part in the objective's `flops`.

    Counted by formula, which a test holds to PyTorch's own counter: that one takes seconds to import (torch._dynamo).
    """
    return sum(OBJECTIVES[config.train.objective].flops(config).values())


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
