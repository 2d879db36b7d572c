"""Pretraining configs and models small enough for tests."""

import dataclasses

from ajepa.config import PRESETS, Config, MaskConfig, ModelConfig, TrainConfig

SHORT_MODEL = ModelConfig(
    crop_frames=64, depth=2, width=32, heads=2, predictor_depth=1, predictor_width=16, predictor_heads=2
)
TINY_MODEL = dataclasses.replace(SHORT_MODEL, depth=4)  # as deep as nano, whose recipe averages 4 layers
LOOP_CONFIG = Config(
    model=dataclasses.replace(SHORT_MODEL, depth=1),
    mask=MaskConfig(mask_ratio=0.6),
    train=TrainConfig(batch_size=8, max_steps=10, log_every=2, eval_every=5, checkpoint_every=4, precision="fp32"),
)


def tiny_config(**train) -> Config:
    """The nano recipe on a tiny model and small batches: a step takes a hundredth of a second."""
    settings = {"batch_size": 8, "max_steps": 6, "log_every": 2, "eval_every": 3, "checkpoint_every": 2} | train
    config = PRESETS["nano"]
    return dataclasses.replace(config, model=TINY_MODEL, train=dataclasses.replace(config.train, **settings))
