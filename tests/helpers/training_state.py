"""A small model in training, its inputs, and run folders made with it in a fraction of a second."""

from pathlib import Path

import numpy as np
import torch

from ajepa.audio.statistics import Statistics
from ajepa.checkpoints import write_checkpoint
from ajepa.config import Config, ModelConfig, TrainConfig
from ajepa.shards.reader import Batch
from ajepa.training.inputs import Inputs, prepare
from ajepa.training.snapshot import snapshot
from ajepa.training.step import TrainState, build_state, train_step

MODEL = ModelConfig(
    crop_frames=128, depth=2, width=32, heads=4, predictor_depth=1, predictor_width=16, predictor_heads=2
)


STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 2.0), 1000)
TOTAL = 50


def make_state(device: str = "cpu", **train) -> TrainState:
    config = Config(model=MODEL, train=TrainConfig(**{"batch_size": 8, "precision": "fp32", "lr": 1e-3} | train))
    return build_state(config, STATISTICS, TOTAL, torch.device(device))


def make_batch(step: int = 0, size: int = 8) -> Batch:
    rng = np.random.default_rng(step)
    t = np.linspace(0, 1, 128)
    tilt = rng.normal(size=(size, 128, 1)) * t + rng.normal(size=(size, 1, 1))
    log_mel = (-4 + 2 * tilt + 0.1 * rng.normal(size=(size, 128, 128))).astype(np.float16)
    samples = np.arange(step * size, (step + 1) * size)
    return Batch(log_mel, samples, samples)


def make_inputs(state: TrainState, step: int = 0, size: int = 8) -> Inputs:
    return prepare(state.config, make_batch(step, size), TOTAL)


def save_run(folder: Path, dataset, steps: int = 3, **train) -> TrainState:
    state = make_state(**train)
    for step in range(steps):
        train_step(state, make_inputs(state, step))
        write_checkpoint(str(folder / "checkpoints" / f"step-{step + 1:08d}"), snapshot(state, dataset, {}))
    return state
