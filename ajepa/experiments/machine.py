"""Where and with what a result was made: kind of processor, versions, commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ajepa.config import Config
from ajepa.model.precision import autocast_dtype


def describe_machine(config: Config, device: torch.device) -> dict[str, Any]:
    """Of this process: device, threads, the precision that `auto` means there, versions and commit."""
    dtype = autocast_dtype(config.train, device) or torch.float32
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "ajepa": importlib.metadata.version("ajepa"),
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that this package lies in, "+" behind it where files have changed; else None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
