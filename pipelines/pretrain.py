"""Pretrain an A-JEPA encoder on log-mel shards with Ray Train. Interrupted, the same command goes on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ajepa.config import PRESETS, Config
from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command
from pipelines.cli.config_file import starting_config


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Pretrain an encoder."""

    data: str
    """A finished shard folder (from preprocess.py); a local path or a URI."""
    output: str
    """The run folder: checkpoints and history. The same command with the same folder resumes."""
    preset: str = "nano"
    """nano, tiny, small, base or large; the options below start from it."""
    config_file: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """A JSON file of settings, as a run's run.json or a part of one: they change the preset's, and options change
    them. A local path or a URI."""
    num_workers: int | str = 1
    """Data-parallel workers (one GPU each where there are GPUs); 4:8 takes what there is between 4 and 8 and adapts
    when machines come or go; 0 trains inside this process, without Ray."""
    threads: int | None = None
    """CPU threads of a worker; by default the machine's CPUs shared out among its workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes GPUs when the cluster has any."""
    wait_for_resources: float = 0.0
    """Seconds to wait for a cluster to have the CPUs or GPUs of all workers (of a range, the lower number)."""
    spread: bool = False
    """Put each worker on a node of its own."""
    max_failures: int = 3
    """Worker failures survived by restarting from the last checkpoint; machines that Ray is told to drain do not
    count."""
    figures: bool = True
    """Draw the run at its end: curves, masks, predictions (figures/ in the run folder and in MLflow)."""
    overwrite: bool = False
    """Delete a run found at the output first."""
    resume_anyway: bool = False
    """Resume a run with other settings or other data than it was started with; what differs is named."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
    config: Annotated[Config, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: PRESETS["nano"])


def parse_args(argv: Sequence[str]) -> PretrainArgs:
    """Two passes: --preset and --config choose the defaults that --help shows and the other options change."""
    preset, config = starting_config(argv, PRESETS, "nano")
    default = PretrainArgs(data=tyro.MISSING, output=tyro.MISSING, preset=preset, config=config)
    return parse(PretrainArgs, __doc__ or "", argv, default)


def main(args: PretrainArgs) -> None:
    """Run the training the arguments describe."""
    announce(f"pretrain: {args.preset} on {args.data} -> {args.output}")
    from pipelines.jobs import pretrain

    pretrain.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
