"""The whole chain on sounds it makes itself: synthesise, preprocess, pretrain, probe, and pictures. No download."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class DemoArgs:
    """Run the demo."""

    output: str = "demo"
    """Local folder for sounds, shards, run, pictures and the MLflow database."""
    clips_per_class: int = 50
    """Clips of each of the 12 classes."""
    max_steps: int = 400
    """Pretraining steps. The nano recipe takes 12,000; the demo's classes are separable after fewer."""
    seed: int = 0
    """Of the initial weights, the order of clips, crops and masks."""
    num_workers: int = 1
    """Ray Train workers; 0 trains inside this process."""
    overwrite: bool = False
    """Delete shards and run of an earlier demo first; without it, what is finished is kept."""


def parse_args(argv: Sequence[str]) -> DemoArgs:
    return parse(DemoArgs, __doc__ or "", argv)


def main(args: DemoArgs) -> None:
    """Run the demo."""
    announce(f"demo: {args.clips_per_class} clips of each class, {args.max_steps} steps -> {args.output}")
    from pipelines.jobs import demo

    demo.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
