"""Score frozen encoders with a probe, beside random initialisations and plain log-mel statistics."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ajepa.choices import POOLINGS, Branch, ProbePooling, Protocol, Unlabelled
from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class ProbeArgs:
    """Probe encoders."""

    encoder: tuple[str, ...]
    """Run folders, checkpoints or exports; local paths or URIs; or `nano`, which comes with ajepa. Several are
    pretraining seeds of one recipe: the table has their mean and standard deviation."""
    data: str
    """A finished shard folder with labels. Its test split is used, else its folds, else five folds are drawn. Where
    clips have several labels the score is mAP, else accuracy."""
    protocol: Protocol = "linear"
    """`linear`: one linear layer on standardised features. `knn`: cosine nearest neighbours."""
    branch: Branch | None = None
    """Which encoder of a run: the EMA target encoder or the context encoder; by default the one that its
    objective evaluates."""
    pooling: tuple[ProbePooling, ...] = POOLINGS
    """How a clip's patches become one vector; `attentive` learns it with the linear layer."""
    layers: str | None = None
    """Layers to take, numbered from 1, like 1,2,3; by default the last one."""
    combine: Literal["concat", "weighted"] = "concat"
    """Several layers as one long vector, or their weighted sum, learned with the linear layer."""
    seeds: int = 3
    """Random initialisations the encoder is compared with, and repetitions of what is drawn: folds, validation clips,
    the start of learned poolings."""
    unlabelled: Unlabelled = "auto"
    """What clips without a label are: negative counts them as clips of no class, where clips may have several labels;
    drop leaves them out; refuse is an error. auto: negative where clips may have several labels, else refuse."""
    train_splits: tuple[str, ...] = ()
    """Splits to train on; by default `train`, of AudioSet `balanced_train`."""
    output: str | None = None
    """Folder for tables and pictures, a local path or a URI; by default probes/PROTOCOL-DATASET in the (first) run
    folder, what is not default behind it."""
    cache: str | None = None
    """Local folder of computed features; by default $AJEPA_CACHE or ~/.cache/ajepa/features."""
    figures: bool = True
    """Draw a confusion matrix and a map of the test clips."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a GPU when there is one."""
    threads: int | None = None
    """CPU threads; by default all."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's, $MLFLOW_TRACKING_URI or mlflow.db in this directory."""


def parse_args(argv: Sequence[str]) -> ProbeArgs:
    return parse(ProbeArgs, __doc__ or "", argv)


def main(args: ProbeArgs) -> None:
    """Probe the encoders the arguments name."""
    announce(f"probe: {args.protocol}, {' '.join(args.encoder)} on {args.data}")
    from pipelines.jobs import probe

    probe.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
