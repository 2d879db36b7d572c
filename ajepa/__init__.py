"""A-JEPA: audio representations learned by predicting the representations of masked time-frequency blocks."""

import importlib
from typing import TYPE_CHECKING, Any

from ajepa.config import PRESETS, Config, FrontEndConfig, MaskConfig, ModelConfig, TrainConfig
from ajepa.errors import UserError

if TYPE_CHECKING:
    from ajepa.finetuning.audio_classifier import AudioClassifier, load_classifier
    from ajepa.inference.encoder import AudioEncoder
    from ajepa.inference.pretrained import export_encoder, load_encoder
    from ajepa.model.pooling import WeightedLayers

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AudioClassifier",
    "AudioEncoder",
    "Config",
    "FrontEndConfig",
    "MaskConfig",
    "ModelConfig",
    "TrainConfig",
    "UserError",
    "WeightedLayers",
    "export_encoder",
    "load_classifier",
    "load_encoder",
]


_LAZY = {
    "AudioClassifier": "ajepa.finetuning.audio_classifier",
    "AudioEncoder": "ajepa.inference.encoder",
    "WeightedLayers": "ajepa.model.pooling",
    "load_classifier": "ajepa.finetuning.audio_classifier",
    "export_encoder": "ajepa.inference.pretrained",
    "load_encoder": "ajepa.inference.pretrained",
}


def __getattr__(name: str) -> Any:
    """The encoder's names, imported when first used: training on a bare GPU box needs no audio libraries."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ajepa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
