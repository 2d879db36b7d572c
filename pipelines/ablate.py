"""Fill tables: one pretraining for each setting and seed with its probes, run by Ray Tune."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from ajepa.choices import Protocol, Unlabelled
from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class AblateArgs:
    """Compare settings: pretrain and probe each with several seeds, and write tables, CSV and figures."""

    tables: tyro.conf.Positional[tuple[str, ...]]
    """objective, masking_strategy, masking_ratio, predictor, loss, placement, target_layers, or all: those of the
    write-up. A setting that stands in several tables is trained once."""
    data: str
    """A finished shard folder to pretrain on; a local path or a URI."""
    output: str
    """Folder for trials, results and tables; a local path or a URI. The same command with the same folder resumes;
    more tables, values or seeds are added."""
    probe_data: tuple[str, ...] = ()
    """Labelled shard folders to probe on; by default --data."""
    protocol: tuple[Protocol, ...] = ("linear", "knn")
    """How frozen features are probed."""
    unlabelled: Unlabelled = "auto"
    """What clips to probe on are that have no label: negative counts them as clips of no class, where clips may have
    several labels; drop leaves them out; refuse is an error. auto: negative where clips may have several labels, else
    refuse."""
    finetune: bool = False
    """Fine-tune each encoder as well, and train one from scratch beside them; takes longer than pretraining."""
    values: tuple[str, ...] = ()
    """The settings to compare, of one table; by default the table's own list, which depends on the preset."""
    seeds: int = 3
    """Pretraining seeds for each setting."""
    first_seed: int = 0
    """The lowest seed."""
    preset: str = "nano"
    """The recipe that is varied."""
    config: str | None = None
    """A JSON file of settings, as a run's run.json or a part of one, that change the preset's."""
    max_steps: int | None = None
    """Steps of each trial; by default the preset's."""
    equal_compute: bool = False
    """Give each setting as many steps as cost the same, not as many steps; needs --max-steps."""
    results: tuple[str, ...] = ()
    """Folders of results from other days or machines: what they hold is not computed again."""
    num_workers: int = 0
    """Ray Train workers of a trial; 0 trains inside the trial's own process."""
    threads: int = 1
    """CPU threads of a trial; trials run at once while CPUs and GPUs last."""
    gpus_per_trial: float | None = None
    """GPUs of a trial without workers, a fraction to share one; by default 1 where the cluster has any, else 0."""
    dry_run: bool = False
    """Show trials, steps and cost; compute nothing."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""


def parse_args(argv: Sequence[str]) -> AblateArgs:
    return parse(AblateArgs, __doc__ or "", argv)


def main(args: AblateArgs) -> None:
    """Run the trials the arguments describe."""
    announce(f"ablate: {', '.join(args.tables)} of {args.preset} on {args.data} -> {args.output}")
    from pipelines.jobs import ablate

    ablate.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
