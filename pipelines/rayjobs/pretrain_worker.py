"""What a worker of pretrain.py does: train, and on rank 0 watch the labels as well."""

import copy
import logging

from ajepa.config import Config
from ajepa.evaluation.online import build_online_probe
from ajepa.shards.dataset import ShardDataset
from ajepa.training.loop import train
from ajepa.training.run_folder import read_history
from ajepa.training.step import TrainState
from ajepa.training.worker import WorkerHooks


def pretrain(worker: WorkerHooks, *, config: Config, dataset: ShardDataset, output: str, resume_anyway: bool) -> None:
    """Train from the newest checkpoint of `output` to the last step, or until asked to stop.

    Args:
        dataset: as the command opened it: a worker that starts later may find a grown one at its path.
    """
    worker.resume_anyway = resume_anyway
    if worker.rank == 0:
        watch_labels(worker, dataset, config, output)
    train(config, dataset, output, worker)


def watch_labels(worker: WorkerHooks, dataset: ShardDataset, config: Config, output: str) -> None:
    """Give rank 0 what it watches beside the loss: an online probe where clips have labels, and the reports so far."""
    worker.history = read_history(output)
    probe, what = build_online_probe(dataset, config)
    logging.getLogger(__name__).info("%s", what)
    if probe is None:
        return

    def score(state: TrainState) -> dict[str, float]:
        baselines = probe.baselines(state.device) if state.step == 0 else {}
        encoder = state.core.encoder
        if any(p.requires_grad for p in encoder.parameters()):  # objectives without a teacher evaluate the trained one
            encoder = copy.deepcopy(encoder).requires_grad_(False)
        return probe.score(encoder) | baselines

    worker.score = score
