"""How long a training step takes on this machine, before there is a run."""

import time

import numpy as np
import torch

from ajepa.audio.statistics import Statistics
from ajepa.config import Config
from ajepa.shards.reader import Batch
from ajepa.training.inputs import on_device, prepare
from ajepa.training.step import build_state, train_step

TIMED_STEPS = 3


def seconds_per_step(config: Config, device: torch.device) -> float:
    """Time of a training step: the median of a few on random log-mels, after one that does not count. On a CPU with the
    threads torch is set to."""
    statistics = Statistics(np.zeros(config.model.n_mels), np.ones(config.model.n_mels), 1)
    state = build_state(config, statistics, TIMED_STEPS + 1, device)
    size, times = config.train.batch_size, []
    for step in range(TIMED_STEPS + 1):
        noise = np.random.default_rng(step).standard_normal((size, config.model.n_mels, config.model.crop_frames))
        samples = np.arange(step * size, (step + 1) * size)
        inputs = prepare(config, Batch(noise.astype(np.float16), samples, samples), TIMED_STEPS + 1)
        start = time.perf_counter()
        for moved in on_device([inputs], device):
            train_step(state, moved).loss.item()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
