"""Fine-tuning as one more way to evaluate an encoder, and the supervised baseline: the same from a random start."""

import json
from typing import Any

import numpy as np
import torch

from ajepa.config import PRESETS, ModelConfig
from ajepa.evaluation.probe import ProbeResult
from ajepa.experiments.probe_sets import SPLIT_SEED, ProbeSet
from ajepa.finetuning.config import PRESETS as RECIPES
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.folds import plan_folds
from ajepa.finetuning.run import Job, finetune, read_result, read_test_logits
from ajepa.finetuning.start import FromScratch, Pretrained
from ajepa.model.flops import encoder_pass
from ajepa.training.worker import WorkerHooks


def recipe_of(model: ModelConfig, from_scratch: bool) -> FinetuneConfig:
    """The fine-tuning of a trial: the write-up's own for its model, for smaller ones that for small data."""
    name = "write-up" if model == PRESETS["base"].model else "small-data"
    return RECIPES["from-scratch" if from_scratch else name]


def as_json(recipe: FinetuneConfig) -> dict[str, Any]:
    """All settings but the seed, as a JSON file gives them back."""
    settings: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    del settings["seed"]
    return settings


def fine_tune(
    start: Pretrained | FromScratch,
    config: FinetuneConfig,
    probe_set: ProbeSet,
    folder: str,
    device: torch.device,
) -> ProbeResult:
    """Train and test every part of a labelled set, as the probes do, in this process. What the folder holds is not
    done again.

    Raises:
        KeyboardInterrupt: it was asked to stop.
    """
    dataset, labels = probe_set.dataset, probe_set.labels
    job = Job(start=start, dataset=dataset, output=folder, config=config, split_seed=SPLIT_SEED)
    finetune(job, WorkerHooks(0, 1, device, report=lambda _: None))
    plans = plan_folds(dataset, config, split_seed=SPLIT_SEED)
    results = [result for plan in plans if (result := read_result(folder, plan.name)) is not None]
    if len(results) < len(plans):
        raise KeyboardInterrupt
    tested = [read_test_logits(folder, plan.name) for plan in plans]
    clips = np.concatenate([rows for rows, _ in tested])
    return ProbeResult(
        clips=clips,
        part=np.repeat(np.arange(len(plans)), [len(rows) for rows, _ in tested]),
        scores=np.concatenate([logits for _, logits in tested]),
        targets=labels.table[clips],
        multi_label=labels.multi_label,
        chosen=tuple({"epoch": result.epoch} for result in results),
        validation=float(np.mean([result.validation for result in results])),
    )


def fine_tuning_flops(model: ModelConfig, recipe: FinetuneConfig, probe_set: ProbeSet) -> float:
    """Of all trainings on a labelled set, each clip of the set's mean length, as if the last epoch were always the
    best."""
    dataset = probe_set.dataset
    frames = dataset.hours * 3600 * dataset.front_end.frame_rate / dataset.num_clips
    windows = min(recipe.crop_frames or frames, frames) / model.crop_frames
    parts = probe_set.splits.parts
    clips = sum(len(part.train) + (len(part.all_train) if part.refit else 0) for part in parts)
    return float(encoder_pass(model, model.num_patches, trained=True)) * windows * clips * recipe.epochs
