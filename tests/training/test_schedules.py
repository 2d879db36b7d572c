"""Schedules as tables over the step."""

import pytest

from ajepa.config import TrainConfig
from ajepa.training.schedules import ema_momentum, learning_rate, total_steps

CONFIG = TrainConfig(epochs=100, warmup_epochs=10, lr=1.0, final_lr=0.1, ema_start=0.9, ema_end=1.0)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (10 + 89 / 2, 0.55), (99, 0.1), (150, 0.1)],
)
def test_learning_rate(step, expected):
    assert learning_rate(CONFIG, step, 100) == pytest.approx(expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.9), (99 / 4, 0.914645), (99 / 2, 0.95), (99, 1.0), (200, 1.0)])
def test_ema_momentum(step, expected):
    assert ema_momentum(CONFIG, step, 100) == pytest.approx(expected, abs=1e-6)


def test_the_write_ups_ema_ends():
    config = TrainConfig()
    assert ema_momentum(config, 0, 1000) == pytest.approx(0.996)
    assert ema_momentum(config, 999, 1000) == pytest.approx(0.9999)


@pytest.mark.parametrize(
    ("clips", "batch", "epochs", "max_steps", "expected"),
    [(2_000_000, 256, 300, None, 2_343_750), (400, 64, 300, 1500, 1500), (400, 64, 1, 1500, 6), (10, 256, 1, None, 1)],
)
def test_total_steps(clips, batch, epochs, max_steps, expected):
    config = TrainConfig(batch_size=batch, epochs=epochs, warmup_epochs=0, max_steps=max_steps)
    assert total_steps(config, clips) == expected


def test_a_shortened_run_keeps_the_shape_of_its_schedule():
    long = [learning_rate(CONFIG, s, 1000) for s in range(99, 1000, 100)]
    short = [learning_rate(CONFIG, s, 100) for s in range(9, 100, 10)]
    assert short == pytest.approx(long, abs=0.01)
