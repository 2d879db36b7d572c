"""What rank 0 watches on fixed clips while it trains: health, scores, utilisation, and the verdict drawn from them."""

from typing import Any

import numpy as np
import torch

from ajepa.errors import UserError
from ajepa.model.precision import autocast_dtype
from ajepa.shards.reader import ShardReader
from ajepa.training.diagnostics import MAX_CROPS, judge, representation_health
from ajepa.training.flops import gemm_rate, step_flops
from ajepa.training.step import TrainState
from ajepa.training.worker import WorkerHooks


class Collapsed(UserError):
    """The representations collapse, and stop_on_collapse is set."""


class Monitor:
    """Measures a state; holds a fixed set of at most MAX_CROPS crops on the device, of held-out clips where there are
    some and of training clips where not."""

    def __init__(self, state: TrainState, reader: ShardReader, worker: WorkerHooks) -> None:
        self.state, self.score = state, worker.score
        self.history = [report for report in worker.history if report["step"] <= state.step]
        self.verdict = judge(self.history, state.config.model.width)
        rows = reader.heldout_rows
        if not len(rows):
            rows = np.sort(reader.epoch_order(0)[:MAX_CROPS])
        batch = reader.crops_of(rows[:MAX_CROPS], max(1, MAX_CROPS // len(rows)))
        self.crops = state.normalise(torch.from_numpy(batch.log_mel).to(state.device))
        self._dtype = autocast_dtype(state.config.train, state.device) or torch.float32
        self._flops_per_second = gemm_rate(state.device, self._dtype)
        self._flops = step_flops(state.config)

    def utilisation(self, clips_per_second: float) -> dict[str, float]:
        """Model FLOPs utilisation of a worker: of the rate at which its device multiplied matrices at the start."""
        rate = clips_per_second / self.state.world_size * self._flops
        if rate > self._flops_per_second:  # the start was a busy moment of the machine
            self._flops_per_second = max(self._flops_per_second, gemm_rate(self.state.device, self._dtype))
        return {"mfu": rate / self._flops_per_second}

    def measure(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report with health, scores and verdict added. It joins the history the verdict is drawn from."""
        health = representation_health(self.state.core.encoder, self.crops)
        report = report | health | self.score(self.state)
        self.history.append(report)
        self.verdict = judge(self.history, self.state.config.model.width, len(self.crops))
        return report | {"verdict": str(self.verdict)}

    def stop_on_collapse(self) -> None:
        """Raise Collapsed if the settings ask for it and the last verdict is "collapsing"."""
        if self.state.config.train.stop_on_collapse and self.verdict.state == "collapsing":
            raise Collapsed(f"step {self.state.step}: {self.verdict} (--no-stop-on-collapse goes on)")
