"""A tiny encoder for the small dataset."""

import pytest

from ajepa.config import ModelConfig
from ajepa.pretrained import random_encoder

MODEL = ModelConfig(
    crop_frames=64, depth=2, width=32, heads=2, predictor_depth=1, predictor_width=16, predictor_heads=2
)


@pytest.fixture(scope="session")
def audio(small_dataset):
    return random_encoder(MODEL, 0, small_dataset.front_end, small_dataset.statistics)
