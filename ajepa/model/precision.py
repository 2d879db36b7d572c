"""What a device multiplies in, and how much of it at a time."""

import torch

from ajepa.config import TrainConfig

CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch.cpu's checks for its instructions
CPU_PATCHES = 4096  # computed at a time: 8 clips of `base`, 64 crops of `nano`


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; emulated on a CPU it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private: a torch that has renamed them trains in float32. The tests name what is gone.
    checks = (getattr(torch.cpu, name, None) for name in CPU_BF16)
    return any(check is not None and check() for check in checks)


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What the forward pass multiplies in, None for float32."""
    if config.precision == "auto":
        return torch.bfloat16 if has_bf16(device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[config.precision]
