"""What a worker of pretrain.py watches beside the loss."""

from typing import get_args

import pytest
import torch
from helpers.runs import tiny_config

from ajepa.choices import ObjectiveName
from ajepa.training.worker import WorkerHooks
from pipelines.rayjobs.pretrain_worker import pretrain


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_labels_are_watched_whatever_the_objective_evaluates(small_dataset, tmp_path, objective):
    """Objectives without a teacher evaluate the encoder that is being trained: it goes on learning."""
    reports = []
    worker = WorkerHooks(0, 1, torch.device("cpu"), reports.append)
    config = tiny_config(max_steps=2, eval_every=1, objective=objective)
    pretrain(worker, config=config, dataset=small_dataset, output=str(tmp_path), resume_anyway=False)
    scored = [report["step"] for report in reports if "online_linear" in report]
    assert scored[0] == 0 and scored[-1] == 2
    losses = [report["loss"] for report in reports if "loss" in report]
    assert len(losses) >= 2
