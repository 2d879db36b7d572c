"""Score frozen encoders with a probe, beside random initialisations and plain log-mel statistics."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from ajepa import storage
from ajepa.choices import POOLINGS, ProbePooling
from ajepa.errors import UserError
from ajepa.evaluation.comparison import (
    MEL,
    PRETRAINED,
    RANDOM,
    Row,
    Source,
    compare,
    comparison_table,
    gain_over_random,
)
from ajepa.evaluation.feature_cache import FeatureCache, default_cache
from ajepa.evaluation.features import mel_statistics
from ajepa.evaluation.heads import Features
from ajepa.evaluation.splits import Splits, make_splits
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.hub_download import SCHEME
from ajepa.inference.pretrained import load_encoder, random_encoder
from ajepa.inference.shipped import encoder_path, shipped_name
from ajepa.shards.dataset import ShardDataset, open_dataset
from ajepa.shards.labels import read_labels
from pipelines.cli.arguments import choose_threads
from pipelines.cli.lock import claimed
from pipelines.cli.output import warn_relative_output
from pipelines.rayjobs.cluster import require_head
from pipelines.reports.probe_report import publish, write_outputs
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining, recorded_uri
from pipelines.tracking.score_outcomes import probe_outcome, score_of
from pipelines.tracking.source import RunSource, this_source

if TYPE_CHECKING:  # the commands import this module
    from pipelines.probe import ProbeArgs

ATTENTIVE = "attentive"
RANDOM_SEED = 1000  # of the first random initialisation: no pretraining starts from it


def main(args: ProbeArgs, *, parent: str | None = None) -> list[Row]:
    """Probe, write tables and pictures, record them in MLflow; returns the table's rows. With --device cuda that is
    done on a node of the cluster that has a GPU, if this one has none."""
    layers = check(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        return elsewhere(args, layers, parent)
    return probe_here(args, layers, parent)


def elsewhere(args: ProbeArgs, layers: list[int] | None, parent: str | None) -> list[Row]:
    """The same on a node of the cluster that has a GPU.

    Raises:
        UserError: there is no cluster, or none with a GPU.
    """
    if not require_head():
        raise UserError("--device cuda: there is no GPU here")
    from pipelines.rayjobs.gpu_node import run_on_gpu_node

    paths = tuple(encoder_path(path) for path in args.encoder)
    args = dataclasses.replace(args, encoder=paths, data=storage.absolute(args.data))
    folders = {"--data": args.data, **{f"--encoder {path}": path for path in paths}}
    output = storage.absolute(args.output or paths[0])
    return run_on_gpu_node(partial(probe_here, args, layers, parent, this_source()), output, args.threads, folders)


def probe_here(
    args: ProbeArgs, layers: list[int] | None, parent: str | None, source: RunSource | None = None
) -> list[Row]:
    """
    Args:
        source: what made the MLflow run; by default this process.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU on a node whose GPU Ray knows: see its driver and its torch")
    torch.set_num_threads(choose_threads(args.threads, 1))
    device = _device(args.device)
    paths = [encoder_path(path) for path in args.encoder]
    encoders = [load_encoder(path, args.branch, device=device) for path in paths]
    dataset = open_dataset(args.data)
    check_encoders(encoders, paths, dataset, layers)
    folder = output_folder(args, paths[0], dataset)
    labels = read_labels(dataset)
    splits = {
        seed: make_splits(dataset, labels, seed, args.train_splits, args.unlabelled) for seed in range(args.seeds)
    }
    origins = [pretraining(path) for path in paths]
    uri = mlflow_run.tracking_uri(args.mlflow_uri or recorded_uri(origins[0]), folder)
    with claimed(folder):
        tracker = mlflow_run.start_run(
            uri,
            f"probe {args.protocol}",
            output=folder,
            params=parameters(args, encoders, dataset, splits[0]),
            tags={
                "ajepa.job": "probe",
                "ajepa.pretrain_run": ",".join(o["mlflow_run"] for o in origins if "mlflow_run" in o),
            },
            parent=parent,
            source=source,
        )
        with tracker.recording():
            tracker.log_dataset(dataset, "evaluation")
            cache = FeatureCache(Path(args.cache or default_cache()).expanduser())
            sources = make_sources(args, encoders, paths, dataset, layers, cache)
            rows = []
            for row in compare(sources, labels, splits, args.protocol, device):
                rows.append(row)
                print(f"{row.features}, {row.pooling}: {row.metric} {row.mean:.3f}", flush=True)
            best = choose_row(rows)
            picture = partial(_vectors, sources[0], best.pooling)
            described = about(args, encoders, paths, dataset, splits[0])
            tracker.log_metrics(max(e.about["step"] for e in encoders), metrics(rows), "probe")
            tracker.describe(probe_outcome(rows, best))
            with tempfile.TemporaryDirectory() as scratch:
                made = Path(scratch)
                write_outputs(made, rows, best, picture, labels, described, args.figures)
                publish(made, folder)
                for path in sorted(made.iterdir()):
                    tracker.log_file(path)
        print(f"\n{args.protocol} probe on {dataset.num_clips} clips ({splits[0].what})\n\n{comparison_table(rows)}")
        print(f"\n{score_of(best)}; all in {folder}")
        if gain := gain_over_random(rows, best):
            print(f"the same pooling: {gain}")
        return rows


def check(args: ProbeArgs) -> list[int] | None:
    """The layers, everything that needs no file checked."""
    if not args.encoder:
        raise UserError("--encoder takes at least one run folder, checkpoint or export")
    if args.output is None and args.encoder[0].startswith(SCHEME):
        raise UserError(f"--output is needed: the encoder {args.encoder[0]!r} lies on the Hugging Face Hub")
    if len(set(args.encoder)) < len(args.encoder):
        raise UserError(f"--encoder names the same twice: {' '.join(args.encoder)}")
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {args.seeds}")
    if not args.pooling:
        raise UserError(f"--pooling takes at least one of {', '.join(get_args(ProbePooling))}")
    attentive, weighted = ATTENTIVE in args.pooling, args.combine == "weighted"
    if args.protocol == "knn" and (attentive or weighted):
        raise UserError(
            "--protocol knn trains nothing: it goes with neither --pooling attentive nor --combine weighted"
        )
    if attentive and weighted:
        raise UserError("--pooling attentive goes with --combine concat alone")
    if args.layers is None:
        if weighted:
            raise UserError("--combine weighted needs --layers, like --layers 1,2,3")
        return None
    try:
        layers = [int(part) for part in args.layers.split(",")]
    except ValueError as error:
        raise UserError(f"--layers {args.layers!r}: give numbers like 1,2,3") from error
    if len(set(layers)) < len(layers):
        raise UserError(f"--layers {args.layers} names a layer twice")
    return layers


def check_encoders(
    encoders: Sequence[AudioEncoder], paths: Sequence[str], dataset: ShardDataset, layers: Sequence[int] | None
) -> None:
    """Encoders of one recipe that the dataset and the layers fit."""
    first = encoders[0]
    for other, path in zip(encoders[1:], paths[1:], strict=True):
        if (other.encoder.config, other.front_end) != (first.encoder.config, first.front_end):
            raise UserError(
                f"{path!r} has another architecture or front end than {paths[0]!r}: probe them in separate commands"
            )
    dataset.require_front_end(first.front_end)
    wrong = [layer for layer in layers or () if not 1 <= layer <= first.depth]
    if wrong:
        raise UserError(f"--layers {wrong[0]}: this encoder has the layers 1 to {first.depth}")


def output_folder(args: ProbeArgs, encoder: str, dataset: ShardDataset) -> str:
    """The output as any process reads it.

    Raises:
        UserError: none is given for an encoder that comes with the package.
    """
    if args.output is None and (name := shipped_name(encoder)) is not None:
        raise UserError(f"--output is needed: the encoder {name!r} lies in the installed package")
    if args.output is None:
        return storage.join(encoder, "probes", folder_name(args, dataset))
    warn_relative_output(args.output)
    return storage.absolute(args.output)


def folder_name(args: ProbeArgs, dataset: ShardDataset) -> str:
    """Names the probe, so that another one of the same encoder does not take its place."""
    chosen = {
        "encoders": len(args.encoder) if len(args.encoder) > 1 else None,
        "branch": args.branch,
        "layers": args.layers,
        "combine": args.combine if args.combine != "concat" else None,
        "pooling": " ".join(args.pooling) if args.pooling != POOLINGS else None,
        "train": " ".join(args.train_splits) or None,
    }
    words = [args.protocol, dataset.content_hash[:8], *(f"{n}-{value}" for n, value in chosen.items() if value)]
    return re.sub(r"[^\w.=-]+", "-", "-".join(words))


def make_sources(
    args: ProbeArgs,
    encoders: Sequence[AudioEncoder],
    paths: Sequence[str],
    dataset: ShardDataset,
    layers: Sequence[int] | None,
    cache: FeatureCache,
) -> list[Source]:
    """The encoders, then random initialisations, then log-mel statistics, computed when their turn comes."""

    def features(encoder: AudioEncoder) -> dict[str, Features]:
        found: dict[str, Features] = {}
        if set(args.pooling) - {ATTENTIVE}:
            pooled = cache.pooled(encoder, dataset, layers, "stack" if args.combine == "weighted" else "concat")
            found = {name: Features(pooled[name]) for name in POOLINGS if name in args.pooling}
        if ATTENTIVE in args.pooling:
            found[ATTENTIVE] = cache.patches(encoder, dataset, layers)
        return found

    def random(seed: int) -> dict[str, Features]:
        init = random_encoder(first.encoder.config, seed, first.front_end, first.normalise.statistics)
        return features(init.to(first.device))

    first, seeds = encoders[0], tuple(range(args.seeds))
    return [
        *(Source(PRETRAINED, path, partial(features, e), seeds) for path, e in zip(paths, encoders, strict=True)),
        *(Source(RANDOM, f"seed {seed}", partial(random, RANDOM_SEED + seed), (seed,)) for seed in seeds),
        Source(MEL, MEL, lambda: {name: Features(v) for name, v in mel_statistics(dataset).items()}, seeds),
    ]


def choose_row(rows: Sequence[Row]) -> Row:
    """The pretrained encoder's row that did best on the validation clips: the one that is drawn and quoted."""
    return max((row for row in rows if row.features == PRETRAINED), key=lambda row: row.validation)


def _vectors(source: Source, pooling: str) -> np.ndarray:
    """Features [n, D] to draw on a map; the mean where the pooling itself is learned."""
    found = source.features()[pooling]
    if found.plain:
        return found.values
    if found.valid is None:
        return found.values.mean(axis=1)
    weight = found.valid / found.valid.sum(axis=1, keepdims=True)
    return np.stack([w @ values.astype(np.float64) for w, values in zip(weight, found.values, strict=True)])


def parameters(
    args: ProbeArgs, encoders: Sequence[AudioEncoder], dataset: ShardDataset, splits: Splits
) -> dict[str, Any]:
    """What MLflow keeps of the settings."""
    return {
        "encoder": " ".join(args.encoder),
        "encoder_digest": " ".join(e.about["digest"] for e in encoders),
        "branch": encoders[0].about["branch"],
        "step": " ".join(str(e.about["step"]) for e in encoders),
        "data": dataset.path,
        "dataset_hash": dataset.content_hash,
        "splits": splits.what,
        "protocol": args.protocol,
        "pooling": ", ".join(args.pooling),
        "layers": args.layers or "last",
        "combine": args.combine,
        "seeds": args.seeds,
    }


def about(
    args: ProbeArgs, encoders: Sequence[AudioEncoder], paths: Sequence[str], dataset: ShardDataset, splits: Splits
) -> dict[str, Any]:
    """The head of results.json."""
    return parameters(args, encoders, dataset, splits) | {
        "encoders": [{"path": path} | e.about for path, e in zip(paths, encoders, strict=True)],
        "clips": dataset.num_clips,
    }


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The table as MLflow metrics."""
    return {
        mlflow_run.metric_name(name, row.features, row.pooling): value
        for row in rows
        for name, value in row.metrics().items()
    }


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
