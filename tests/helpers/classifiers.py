"""Fine-tuned models without a fine-tuning: the random initialisation of a tiny encoder, and a head that is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ajepa.finetuning.classifier import write_model
from ajepa.finetuning.model import Classifier
from ajepa.inference.pretrained import random_encoder
from ajepa.shards.dataset import ShardDataset
from helpers.runs import SHORT_MODEL


def save_classifier(
    folder: Path,
    dataset: ShardDataset,
    names: Sequence[str],
    multi_label: bool | None = False,
    notes: dict[str, Any] | None = None,
) -> str:
    """Write a model with the dataset's front end and statistics, windows of 0.64 s; returns its folder."""
    audio = random_encoder(SHORT_MODEL, 0, dataset.front_end, dataset.statistics)
    audio.about |= {"objective": "jepa", "branch": "target", "step": 3, "dataset_hash": "d16e57"}
    model = Classifier(audio, len(names), "mean")
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    write_model(str(folder), model, tuple(names), notes or {}, multi_label)
    return str(folder)
