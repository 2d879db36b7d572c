"""Score a frozen encoder with a probe, beside its random initialisation and plain log-mel statistics."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from ajepa import storage
from ajepa.errors import UserError
from ajepa.evaluation.comparison import PRETRAINED, Row, compare, markdown_table
from ajepa.evaluation.probe import labels_and_folds
from ajepa.pretrained import Branch, load_encoder
from ajepa.shards.dataset import open_dataset
from ajepa.training.checkpoint import latest_checkpoint, read_info
from pipelines import tracking
from pipelines.common import parse, run_command
from pipelines.pretrain import RUN_JSON
from pipelines.workers import choose_threads


@dataclass(frozen=True, kw_only=True)
class ProbeArgs:
    """Probe an encoder."""

    encoder: str
    """A run folder or a checkpoint; a local path or a URI."""
    data: str
    """A finished shard folder with one label a clip; folds are used where it has them."""
    protocol: Literal["linear", "knn"] = "linear"
    """`linear`: logistic regression on standardised features. `knn`: cosine nearest neighbours."""
    branch: Branch = "target"
    """Which encoder of the run: the EMA target encoder or the context encoder."""
    random_seeds: int = 3
    """Random initialisations the encoder is compared with."""
    output: str | None = None
    """Local folder for the table; by default probes/PROTOCOL-DATASET in the run folder."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's."""


def source_run(encoder: str) -> dict[str, str]:
    """run.json of the run an encoder belongs to, or {} for a checkpoint outside a run folder."""
    where = storage.join(encoder, RUN_JSON)
    return json.loads(storage.read_text(where)) if storage.kind(where) == "file" else {}


def main(args: ProbeArgs, *, parent: str | None = None) -> list[Row]:
    """Probe, write the table, record it in MLflow; returns the table's rows."""
    if args.random_seeds < 0:
        raise UserError(f"--random-seeds must not be negative, got {args.random_seeds}")
    path = storage.absolute(args.encoder)
    encoder = load_encoder(path, args.branch)
    info = read_info(latest_checkpoint(path))
    dataset = open_dataset(args.data)
    if args.output is None and storage.is_uri(path):
        raise UserError("--output is needed when the encoder lies at a URI")
    folder = Path(args.output or storage.join(path, "probes", f"{args.protocol}-{dataset.content_hash[:8]}"))
    labels_and_folds(dataset)  # what cannot be probed is said before anything is recorded
    run = source_run(path)
    uri = tracking.tracking_uri(args.mlflow_uri or run.get("mlflow_uri"), str(folder))
    tracker = tracking.start_run(
        uri,
        f"probe {args.protocol}",
        params={
            "encoder": path, "step": info.step, "branch": args.branch, "protocol": args.protocol,
            "data": dataset.path, "dataset_hash": dataset.content_hash, "random_seeds": args.random_seeds,
        },
        tags={"ajepa.job": "probe", "ajepa.pretrain_run": run.get("mlflow_run", "")},
        parent=parent,
    )  # fmt: skip
    with tracker.recording():
        torch.set_num_threads(choose_threads(None, 1))
        rows = compare(encoder, info.config, dataset, args.protocol, args.random_seeds)
        table = markdown_table(rows)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(table + "\n")
        pd.DataFrame([dataclasses.asdict(r) | {"mean": r.mean, "std": r.std} for r in rows]).to_csv(
            folder / "table.csv", index=False
        )
        tracker.log_metrics(info.step, metrics(rows))
        tracker.log_file(folder / "table.md")
        tracker.log_file(folder / "table.csv")
    print(
        f"{args.protocol} probe of step {info.step} on {dataset.num_clips} clips, {len(rows[0].fold_accuracy)} folds\n"
    )
    print(table)
    best = max((r for r in rows if r.features == PRETRAINED), key=lambda r: r.mean)
    print(f"\naccuracy {best.mean:.3f} with {best.pooling} pooling; table in {folder}")
    return rows


def metric_name(features: str, pooling: str) -> str:
    """The MLflow metric of one cell of the table; MLflow takes no "+" in a name."""
    return f"accuracy_{features}_{pooling}".replace(" ", "_").replace("+", "_")


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The table as MLflow metrics."""
    return {metric_name(r.features, r.pooling): r.mean for r in rows}


if __name__ == "__main__":
    run_command(lambda: main(parse(ProbeArgs, __doc__ or "")))
