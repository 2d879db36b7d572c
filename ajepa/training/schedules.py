"""Learning rate and EMA momentum as pure functions of the step over the run's real total (spec 8)."""

import math

from ajepa.config import TrainConfig


def total_steps(config: TrainConfig, num_clips: int) -> int:
    """Steps of a run: floor(epochs * clips / batch), at least 1, cut at max_steps."""
    steps = max(1, config.epochs * num_clips // config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Linear warm-up over warmup_epochs / epochs of the run, then cosine from `lr` to `final_lr`.

    The first step already has lr / warmup_steps, and the last one final_lr.
    """
    warmup = round(total * config.warmup_epochs / config.epochs)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def ema_momentum(config: TrainConfig, step: int, total: int) -> float:
    """Cosine from ema_start at the first step to ema_end at the last."""
    progress = min(1.0, step / max(1, total - 1))
    return config.ema_end - (config.ema_end - config.ema_start) * 0.5 * (1 + math.cos(math.pi * progress))
