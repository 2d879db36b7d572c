"""Predictions of a fine-tuned model for audio files or shards as Parquet, and as CSV, in one Ray Data job. Interrupted
at any time, the same command goes on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ajepa.choices import PredictionLevel
from pipelines.cli.arguments import parse
from pipelines.cli.clip_options import ClipOptions
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class PredictArgs(ClipOptions):
    """Predict the labels of clips."""

    model: str
    """A fine-tuned model: a model folder of finetune.py, or its output where it wrote one model; a local path or a
    URI."""
    level: PredictionLevel = "clip"
    """One prediction a `clip`, from all of it, or one for each `window` of the encoder's length."""
    hop: float | None = None
    """Level `window`: seconds between the beginnings of windows; by default their length."""
    csv: str | None = None
    """Also write one CSV file: clip_id, start_s, end_s, label and probability, the most probable label first; a local
    path or a URI. A finished folder is not computed again for it."""
    top: int | None = None
    """With --csv: most labels of a clip or window; by default 1, or all that reach --threshold where clips may have
    several labels."""
    threshold: float | None = None
    """With --csv: least probability of a label; by default 0.5 where clips may have several labels and --top is not
    given, else none."""


def parse_args(argv: Sequence[str]) -> PredictArgs:
    return parse(PredictArgs, __doc__ or "", argv)


def main(args: PredictArgs) -> None:
    """Predict."""
    announce(f"predict: {args.input} by {args.model} -> {args.output}")
    from pipelines.jobs import predict

    predict.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
