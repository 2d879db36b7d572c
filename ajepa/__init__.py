"""A-JEPA: audio representations learned by predicting the representations of masked time-frequency blocks."""

from ajepa.config import PRESETS, Config, FrontEndConfig, MaskConfig, ModelConfig, TrainConfig
from ajepa.encoder import AudioEncoder, load_encoder
from ajepa.errors import UserError

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
    "load_encoder",
]
