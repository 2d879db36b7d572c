"""A-JEPA: audio representations learned by predicting the representations of masked time-frequency blocks."""

from typing import TYPE_CHECKING, Any

from ajepa.config import PRESETS, Config, FrontEndConfig, MaskConfig, ModelConfig, TrainConfig
from ajepa.errors import UserError

if TYPE_CHECKING:
    from ajepa.encoder import AudioEncoder
    from ajepa.pretrained import export_encoder, load_encoder

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AudioEncoder",
    "Config",
    "FrontEndConfig",
    "MaskConfig",
    "ModelConfig",
    "TrainConfig",
    "UserError",
    "export_encoder",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    """The encoder's names, imported when first used: training on a bare GPU box needs no audio libraries."""
    if name == "AudioEncoder":
        from ajepa.encoder import AudioEncoder

        return AudioEncoder
    if name in ("export_encoder", "load_encoder"):
        from ajepa import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'ajepa' has no attribute {name!r}")
