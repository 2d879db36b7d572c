"""A pretraining config small enough for tests."""

import dataclasses

from ajepa.config import PRESETS, Config


def tiny_config(**train) -> Config:
    """The nano model on small batches: a step takes a tenth of a second."""
    settings = {"batch_size": 8, "max_steps": 6, "log_every": 2, "eval_every": 3, "checkpoint_every": 2} | train
    config = PRESETS["nano"]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
