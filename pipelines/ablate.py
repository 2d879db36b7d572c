"""Reproduce an ablation table: one pretraining and probe per setting and seed, run by Ray Tune."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class AblateArgs:
    """Run an ablation."""

    ablation: tyro.conf.Positional[str]
    """masking_ratio, masking_strategy, placement, predictor, loss or target_layers."""
    data: str
    """A finished, labelled shard folder."""
    output: str
    """Local folder for trials, table and figure. The same command with the same folder resumes."""
    values: tuple[str, ...] = ()
    """The settings to compare; by default the ablation's own list."""
    seeds: int = 1
    """Pretraining seeds for each setting."""
    preset: str = "nano"
    """The recipe that is varied."""
    config: str | None = None
    """A JSON file of settings, as a run's run.json or a part of one, that change the preset's."""
    max_steps: int | None = None
    """Steps of each trial; by default the preset's."""
    num_workers: int = 0
    """Ray Train workers of a trial; 0 trains inside the trial's own process."""
    threads: int = 1
    """CPU threads of a trial's worker; trials run at once while CPUs last."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""


def parse_args(argv: Sequence[str]) -> AblateArgs:
    return parse(AblateArgs, __doc__ or "", argv)


def main(args: AblateArgs) -> None:
    """Run the ablation the arguments describe."""
    announce(f"ablate: {args.ablation} of {args.preset} on {args.data} -> {args.output}")
    from pipelines.jobs import ablate

    ablate.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
