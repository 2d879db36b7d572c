"""One trial: an encoder, trained or a baseline, and its probes. Done once, whatever the number of tables it stands in.

A trial is its config: what changes no weight (how often to report or to save) is left out of its key. Its folder holds
`run/`, a run folder like any other, and result.json, which is written after each probe: killed at any time, it goes on
without training or probing anything twice.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ajepa import storage
from ajepa.checkpoints import newest_step
from ajepa.choices import POOLINGS, Pooling, Protocol
from ajepa.config import Config
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.evaluation.features import encoder_features, mel_statistics
from ajepa.evaluation.heads import Features
from ajepa.evaluation.probe import ProbeResult, probe
from ajepa.evaluation.splits import Splits, make_splits
from ajepa.experiments.machine import describe_machine
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder, random_encoder
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.labels import Labels, read_labels
from ajepa.training.flops import step_flops
from ajepa.training.loop import train
from ajepa.training.run_folder import HISTORY, append_history, read_history
from ajepa.training.worker import WorkerHooks

Kind = Literal["pretrained", "random init", "log-mel statistics"]
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
SPLIT_SEED = 0  # of folds that are drawn: the same clips are tested in all trials


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
        config = json.loads(self.config.to_json())
        for name in (*UNIMPORTANT, "seed"):
            del config["train"][name]
        parts = config if self.kind == PRETRAINED else {"model": config["model"]}
        return {"kind": self.kind, "dataset": self.dataset_hash, "config": parts}

    @property
    def key(self) -> str:
        """Of the setting, the same for all seeds."""
        text = json.dumps(self.identity, sort_keys=True).encode()
        return hashlib.blake2b(text, digest_size=6).hexdigest()

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


@dataclass(frozen=True)
class ProbeSet:
    """A labelled dataset that encoders are probed on."""

    name: str
    dataset: ShardDataset
    labels: Labels
    splits: Splits
    clip_ids: np.ndarray  # [n] str

    @classmethod
    def of(cls, dataset: ShardDataset, name: str) -> "ProbeSet":
        """
        Raises:
            UserError: it has no labels, or splits that cannot be used.
        """
        labels = read_labels(dataset)
        ids = np.array(dataset.read_columns(["clip_id"])["clip_id"].to_pylist(), str)
        return cls(name, dataset, labels, make_splits(dataset, labels, SPLIT_SEED), ids)


def open_probes(paths: Sequence[str], data: ShardDataset) -> list[ProbeSet]:
    """Probe sets of folders of shards, each under a name of its own: the folder's, with the content's hash behind it
    where two folders have the same. The same clips in two places are one set.

    Raises:
        UserError: as `ProbeSet.of`; or another front end than that of the data trained on.
    """
    datasets: dict[str, tuple[str, ShardDataset]] = {}
    for path in paths:
        dataset = open_dataset(path)
        dataset.require_front_end(data.front_end)
        datasets.setdefault(dataset.content_hash, (Path(storage.absolute(path)).name, dataset))
    names = [name for name, _ in datasets.values()]
    return [
        ProbeSet.of(dataset, name if names.count(name) == 1 else f"{name}-{key[:8]}")
        for key, (name, dataset) in datasets.items()
    ]


Train = Callable[[Config, ShardDataset, str], None]
"""Trains into a run folder, from where it stands; returns early where it was asked to stop."""


def run_trial(
    trial: Trial,
    data: ShardDataset,
    probes: Sequence[ProbeSet],
    protocols: Sequence[Protocol],
    folder: str,
    device: torch.device,
    train: Train | None = None,
) -> dict[str, Any]:
    """Train and probe what is not in the folder yet; the content of its result.json.

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
    for probe_set in probes:
        missing = [p for p in protocols if not _scores_of(result, probe_set, p)]
        features = pooled_features(encoder, probe_set.dataset) if missing else {}
        for protocol in missing:
            start = time.perf_counter()
            scores = [
                describe_scores(probe_set, protocol, pooling, probe(
                    Features(values), probe_set.labels, probe_set.splits, protocol, 0, device
                ))
                for pooling, values in features.items()
            ]  # fmt: skip
            result["scores"] += scores
            result["probe_seconds"] = result.get("probe_seconds", 0.0) + round(time.perf_counter() - start, 1)
            write_result(folder, result)
    return result


def write_result(folder: str, result: dict[str, Any]) -> None:
    storage.make_folder(folder)
    storage.write_text(storage.join(folder, RESULT_JSON), json.dumps(result))


def is_done(result: dict[str, Any] | None, probes: Sequence[ProbeSet], protocols: Sequence[Protocol]) -> bool:
    """Whether a result holds all that is asked for."""
    return result is not None and all(_scores_of(result, p, protocol) for p in probes for protocol in protocols)


def read_result(folder: str) -> dict[str, Any] | None:
    """A trial's result.json; None where it has none."""
    where = storage.join(folder, RESULT_JSON)
    return json.loads(storage.read_text(where)) if storage.path_type(where) == "file" else None


def _scores_of(result: dict[str, Any], probe_set: ProbeSet, protocol: Protocol) -> list[dict[str, Any]]:
    data = probe_set.dataset.content_hash
    return [s for s in result["scores"] if s["data"]["hash"] == data and s["protocol"] == protocol]


def pretrain(config: Config, data: ShardDataset, run: str, device: torch.device) -> None:
    """Train in this process, from where the run folder stands; reports go to its history."""
    storage.make_folder(run)
    steps = newest_step(run)
    history = read_history(run) if storage.path_type(storage.join(run, HISTORY)) == "file" else []
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


def describe_scores(probe_set: ProbeSet, protocol: Protocol, pooling: str, found: ProbeResult) -> dict[str, Any]:
    """What a result says of a probe: its score, and of single labels which tested clips are right, as bits in hex, in
    the order of clip ids: rows may have another order elsewhere."""
    right = None
    if not found.multi_label:
        order = np.argsort(probe_set.clip_ids[found.clips], kind="stable")
        hits = found.scores[order].argmax(axis=1) == found.targets[order].argmax(axis=1)
        right = np.packbits(hits).tobytes().hex()
    return {
        "data": {"name": probe_set.name, "hash": probe_set.dataset.content_hash, "clips": len(found.clips)},
        "splits": probe_set.splits.what,
        "protocol": protocol,
        "pooling": pooling,
        "metric": found.metric,
        "score": found.mean,
        "validation": found.validation,
        "folds": found.fold_scores,
        "right": right,
    }
