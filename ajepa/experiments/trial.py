"""One trial: an encoder, trained or a baseline, and its scores. Done once, whatever the number of tables it stands in.

A trial is its config: what changes no weight (how often to report or to save) is left out of its key. Its folder holds
`run/`, a run folder like any other, and result.json, which is written after each evaluation: killed at any time, it
goes on without training or probing anything twice.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ajepa import storage
from ajepa.checkpoints import newest_step
from ajepa.choices import POOLINGS, Evaluation, Pooling
from ajepa.config import Config
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.evaluation.features import encoder_features, mel_statistics
from ajepa.evaluation.heads import Features
from ajepa.evaluation.probe import probe
from ajepa.experiments.finetuned import as_json, fine_tune, recipe_of
from ajepa.experiments.machine import describe_machine
from ajepa.experiments.probe_sets import ProbeSet, describe_scores
from ajepa.experiments.results import require_scores
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.start import SUPERVISED, FromScratch, Pretrained
from ajepa.finetuning.summary import FINETUNED
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder, random_encoder
from ajepa.shards.dataset import ShardDataset
from ajepa.training.flops import step_flops
from ajepa.training.loop import train
from ajepa.training.run_folder import append_history, read_history
from ajepa.training.worker import WorkerHooks

Kind = Literal["pretrained", "random init", "log-mel statistics", "supervised"]
# Settings of a run that change no weight.
UNIMPORTANT = (
    "log_every",
    "eval_every",
    "stop_on_collapse",
    "checkpoint_every",
    "keep_checkpoints",
    "compile",
    "micro_batch",
)
RANDOM_SEED = 1000  # added to the seed of random initialisations: no pretraining starts from them
RESULT_JSON = "result.json"


@dataclass(frozen=True)
class Trial:
    """An encoder to make; its seed is that of the config."""

    kind: Kind
    config: Config
    dataset_hash: str  # of the clips it is trained on

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def identity(self) -> dict[str, Any]:
        """All that the encoder depends on but the seed."""
        if self.kind == MEL:
            return {"kind": self.kind}
        if self.kind == SUPERVISED:
            parts = {"model": dataclasses.asdict(self.config.model), "finetune": as_json(self.recipe)}
            return {"kind": self.kind, "dataset": self.dataset_hash, "config": parts}
        config = json.loads(self.config.to_json())
        for name in (*UNIMPORTANT, "seed"):
            del config["train"][name]
        parts = config if self.kind == PRETRAINED else {"model": config["model"]}
        return {"kind": self.kind, "dataset": self.dataset_hash, "config": parts}

    @property
    def recipe(self) -> FinetuneConfig:
        """How its encoder is trained on labelled clips, with its seed."""
        recipe = recipe_of(self.config.model, from_scratch=self.kind == SUPERVISED)
        return dataclasses.replace(recipe, seed=self.seed)

    def evaluations(self, wanted: Sequence[Evaluation]) -> list[Evaluation]:
        """Those of `wanted` that it can have. The supervised baseline has one, wanted or not."""
        if self.kind == SUPERVISED:
            return [FINETUNED]
        return [e for e in wanted if e != FINETUNED or self.kind == PRETRAINED]

    @property
    def key(self) -> str:
        """Of the setting, the same for all seeds."""
        return short_hash(self.identity)

    @property
    def name(self) -> str:
        """Of the setting's files, with what a reader looks for first."""
        train, mask = self.config.train, self.config.mask
        words = (
            [train.objective, mask.strategy, f"{mask.mask_ratio:g}"]
            if self.kind == PRETRAINED
            else [self.kind.replace(" ", "-")]
        )
        return "-".join([*words, self.key])


def short_hash(content: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


Train = Callable[[Config, ShardDataset, str], None]
"""Trains into a run folder, from where it stands; returns early where it was asked to stop."""


def run_trial(
    trial: Trial,
    data: ShardDataset,
    probes: Sequence[ProbeSet],
    evaluations: Sequence[Evaluation],
    folder: str,
    device: torch.device,
    train: Train | None = None,
) -> dict[str, Any]:
    """Train and score what is not in the folder yet; the content of its result.json.

    Args:
        train: by default in this process.

    Raises:
        KeyboardInterrupt: the training was stopped.
    """
    result = read_result(folder) or {
        "kind": trial.kind, "key": trial.key, "name": trial.name, "identity": trial.identity, "seed": trial.seed,
        "scores": [],
    }  # fmt: skip
    encoder = None
    if trial.kind == PRETRAINED:
        run = storage.join(folder, "run")
        (train or partial(pretrain, device=device))(trial.config, data, run)
        if "machine" not in result:  # that of the training, whoever probes later
            result |= describe_run(trial.config, run, device)
            write_result(folder, result)
        encoder = load_encoder(run).to(device)
    elif trial.kind == RANDOM:
        seed = RANDOM_SEED + trial.seed
        encoder = random_encoder(trial.config.model, seed, data.front_end, data.statistics).to(device)
    elif trial.kind == SUPERVISED:
        result.setdefault("machine", describe_machine(trial.config, device))
    for probe_set in probes:
        missing = [e for e in trial.evaluations(evaluations) if not _scores_of(result, trial, probe_set, e)]
        probed = [e for e in missing if e != FINETUNED]
        start = time.perf_counter()
        features = pooled_features(encoder, probe_set.dataset) if probed else {}
        for protocol in probed:
            scores = [
                describe_scores(probe_set, protocol, pooling, probe(
                    Features(values), probe_set.labels, probe_set.splits, protocol, 0, device
                ))
                for pooling, values in features.items()
            ]  # fmt: skip
            result["scores"] += scores
            start, began = time.perf_counter(), start
            result["probe_seconds"] = result.get("probe_seconds", 0.0) + round(start - began, 1)
            write_result(folder, result)
        if FINETUNED in missing:
            fine_tuned(result, trial, probe_set, folder, device)
    return result


def fine_tuned(result: dict[str, Any], trial: Trial, probe_set: ProbeSet, folder: str, device: torch.device) -> None:
    """Add the score of the trial's encoder trained on the set's labels; the models are not kept."""
    start, recipe = time.perf_counter(), recipe_on(trial, probe_set)
    # What another recipe has started is not continued.
    models = storage.join(folder, f"fine-tuned-{short_hash([probe_set.hash, as_json(recipe)])}")
    origin = FromScratch(trial.config.model) if trial.kind == SUPERVISED else Pretrained(storage.join(folder, "run"))
    found = fine_tune(origin, recipe, probe_set, models, device)
    score = describe_scores(probe_set, FINETUNED, recipe.pooling, found) | {"recipe": as_json(recipe)}
    old = _all_scores_of(result, probe_set, FINETUNED)  # of another recipe
    result["scores"] = [s for s in result["scores"] if s not in old] + [score]
    seconds = round(time.perf_counter() - start, 1)
    result["fine_tuning_seconds"] = result.get("fine_tuning_seconds", 0.0) + seconds
    write_result(folder, result)
    storage.delete(models)


def recipe_on(trial: Trial, probe_set: ProbeSet) -> FinetuneConfig:
    """A trial's recipe with the clips of a probe set."""
    return dataclasses.replace(trial.recipe, unlabelled=probe_set.unlabelled)


def write_result(folder: str, result: dict[str, Any]) -> None:
    storage.make_folder(folder)
    storage.write_text(storage.join(folder, RESULT_JSON), json.dumps(result))


def is_done(
    result: dict[str, Any] | None, trial: Trial, probes: Sequence[ProbeSet], evaluations: Sequence[Evaluation]
) -> bool:
    """Whether a result of the trial holds all that is asked for."""
    wanted = trial.evaluations(evaluations)
    return result is not None and all(_scores_of(result, trial, p, evaluation) for p in probes for evaluation in wanted)


def read_result(folder: str) -> dict[str, Any] | None:
    """A trial's result.json; None where it has none.

    Raises:
        UserError: it is damaged.
    """
    where = storage.join(folder, RESULT_JSON)
    if storage.path_type(where) != "file":
        return None
    advice = "delete it and run the same command again: the trained encoder is kept, and scored again"
    result = read_document(where, advice)
    with refusing_damage(where, advice):
        require_types(result, kind=str, key=str, name=str, identity=dict, seed=int)
        require_scores(result)
    return result


def _all_scores_of(result: dict[str, Any], probe_set: ProbeSet, evaluation: Evaluation) -> list[dict[str, Any]]:
    return [s for s in result["scores"] if s["data"]["hash"] == probe_set.hash and s["protocol"] == evaluation]


def _scores_of(
    result: dict[str, Any], trial: Trial, probe_set: ProbeSet, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Those that count: of a fine-tuning, of the recipe of today."""
    recipe = as_json(recipe_on(trial, probe_set)) if evaluation == FINETUNED else None
    return [s for s in _all_scores_of(result, probe_set, evaluation) if s.get("recipe") == recipe]


def pretrain(config: Config, data: ShardDataset, run: str, device: torch.device) -> None:
    """Train in this process, from where the run folder stands; reports go to its history."""
    storage.make_folder(run)
    steps = newest_step(run)
    history = read_history(run)
    if history and history[-1]["step"] == history[-1]["total_steps"] == steps:
        return

    def report(metrics: dict[str, Any]) -> None:
        append_history(run, [{k: v for k, v in metrics.items() if k not in ("share", "averaged")}])

    train(config, data, run, WorkerHooks(0, 1, device, report, history=history))


def describe_run(config: Config, run: str, device: torch.device) -> dict[str, Any]:
    """What a result says of a finished run.

    Raises:
        KeyboardInterrupt: it is not finished: it was asked to stop.
    """
    history = read_history(run)
    last = history[-1]
    if last["step"] < last["total_steps"]:
        raise KeyboardInterrupt
    rates = [report["clips_per_second"] for report in history if "clips_per_second" in report]
    return {
        "steps": last["step"],
        "loss": round(last["loss"], 5),
        "effective_rank": round(last["effective_rank"], 2),
        "verdict": last["verdict"],
        "clips_per_second": round(float(np.median(rates)), 1),
        "flops_per_clip": step_flops(config),
        "machine": describe_machine(config, device),
    }


def pooled_features(encoder: AudioEncoder | None, dataset: ShardDataset) -> dict[Pooling, np.ndarray]:
    """Features by pooling; without an encoder log-mel statistics."""
    if encoder is None:
        return mel_statistics(dataset)
    found = encoder_features(encoder, dataset)
    return {pooling: found[pooling] for pooling in POOLINGS}
