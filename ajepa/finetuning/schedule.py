"""Steps, epochs and learning rates of one training as pure functions of the step."""

import math
from dataclasses import dataclass

from ajepa.finetuning.config import FinetuneConfig


@dataclass(frozen=True)
class Schedule:
    """Where epochs end and how fast is learned. Epoch e (from 1) ends after step ceil(e * clips / batch): its last
    batch holds the first clips of the next one."""

    config: FinetuneConfig
    num_clips: int  # of an epoch

    def steps(self, epochs: float) -> int:
        """Steps of the first `epochs` epochs."""
        return math.ceil(epochs * self.num_clips / self.config.batch_size - 1e-9)

    @property
    def total_steps(self) -> int:
        return self.steps(self.config.epochs)

    def ended_epoch(self, step: int) -> int | None:
        """The epoch that ends with `step` steps done; None within one. Of two that end at once, the later one."""
        epoch = step * self.config.batch_size // self.num_clips
        return min(epoch, self.config.epochs) if epoch and self.steps(epoch) == step else None

    def factor(self, step: int) -> float:
        """Share of the peak learning rates: linear warm-up, then a cosine to zero over the epochs."""
        warmup = self.steps(self.config.warmup_epochs)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def encoder_factor(self, step: int) -> float:
        """The same for the encoder, which waits for `freeze_epochs`."""
        return 0.0 if step < self.steps(self.config.freeze_epochs) else self.factor(step)
