"""Fine-tune an encoder on labelled shards with Ray Train, or train one from scratch. Interrupted, the same command goes
on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ajepa.choices import Branch
from ajepa.finetuning.config import PRESETS, FinetuneConfig
from pipelines.cli.arguments import option_value, parse
from pipelines.cli.command import announce, run_command
from pipelines.cli.config_file import starting_config


@dataclass(frozen=True, kw_only=True)
class FinetuneArgs:
    """Train an encoder with a linear head: choose the epoch on validation clips, test once."""

    encoder: str | None = None
    """A run folder, a checkpoint or an export; a local path or a URI; or `nano`, which comes with ajepa."""
    from_scratch: str | None = None
    """Instead of --encoder: the pretraining preset (nano, base, ...) whose encoder is trained from its random
    initialisation, one for each seed: the supervised baseline."""
    data: str
    """A finished shard folder with labels. Its splits are used, else its folds (each tested once), else five drawn."""
    output: str | None = None
    """Folder for models, scores and tables; by default finetuned/PRESET-DATASET in the run folder. The same command
    with the same folder resumes."""
    preset: str = "write-up"
    """write-up (spec 9), small-data (hundreds to thousands of clips) or from-scratch, the default of --from-scratch;
    the options below start from it."""
    config_file: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """A JSON file of settings, as a fine-tuning's finetune.json or a part of one: they change the preset's, and options
    change them. A local path or a URI."""
    branch: Branch | None = None
    """Which encoder of a run: the EMA target encoder or the context encoder; by default the one that its
    objective evaluates."""
    seeds: int = 1
    """Repetitions with other seeds, counted up from --seed."""
    fold: int | None = None
    """Test this fold alone."""
    num_workers: int | str = 1
    """Data-parallel workers (one GPU each where there are GPUs), or a range like 4:8; 0 trains inside this process,
    without Ray."""
    threads: int | None = None
    """CPU threads of a worker; by default the machine's CPUs shared out among its workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes GPUs when the cluster has any."""
    wait_for_resources: float = 0.0
    """Seconds to wait for a cluster to have the CPUs or GPUs of all workers (of a range, the lower number)."""
    spread: bool = False
    """Put each worker on a node of its own."""
    max_failures: int = 3
    """Worker failures survived by restarting from the last checkpoint."""
    probe: bool = True
    """Put the linear probe of the frozen encoder, on the same parts and with the same pooling, beside the scores."""
    overwrite: bool = False
    """Delete what an earlier fine-tuning left at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's, $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
    config: Annotated[FinetuneConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=FinetuneConfig)


def parse_args(argv: Sequence[str]) -> FinetuneArgs:
    """Two passes: --preset and --config choose the defaults that --help shows and the other options change."""
    usual = "write-up" if option_value(argv, "--from-scratch") is None else "from-scratch"
    preset, config = starting_config(argv, PRESETS, usual)
    default = FinetuneArgs(data=tyro.MISSING, preset=preset, config=config)
    return parse(FinetuneArgs, __doc__ or "", argv, default)


def main(args: FinetuneArgs) -> None:
    """Run the fine-tuning the arguments describe."""
    what = args.encoder or (f"{args.from_scratch} from scratch" if args.from_scratch else "no encoder")
    announce(f"finetune: {args.preset}, {what} on {args.data}")
    from pipelines.jobs import finetune

    finetune.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
