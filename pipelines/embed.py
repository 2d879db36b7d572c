"""Embeddings of audio files or shards as Parquet, in one Ray Data job. Interrupted at any time, the same command goes
on. With --neighbours QUERY.wav --output EMB, print the clips of a finished folder that are most like a recording."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ajepa.choices import Branch, Level, Pooling
from pipelines.cli.arguments import parse
from pipelines.cli.clip_options import ClipOptions
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class EmbedArgs(ClipOptions):
    """Embed clips."""

    encoder: str
    """A run folder, a checkpoint or an export; a local path or a URI; or `nano`, which comes with ajepa."""
    level: Level = "clip"
    """A vector a `clip`, a `frame` of 160 ms, or a `patch` of 160 ms and 16 mel bins."""
    pooling: Pooling = "mean"
    """Level `clip`: how patches become one vector."""
    layers: tuple[int, ...] | None = None
    """Encoder layers from 1 to its depth, concatenated; by default the last one after its norm."""
    branch: Branch | None = None
    """Which encoder of a run: the EMA target encoder or the context encoder; by default the one that its
    objective evaluates."""
    log_model: bool = False
    """Log the encoder to MLflow as a model, beside the run."""


@dataclass(frozen=True, kw_only=True)
class NeighboursArgs:
    """Print the clips that are most like a recording."""

    neighbours: str
    """An audio file; a local path or a URI."""
    output: str
    """A finished embedding folder of level `clip`; a local path or a URI."""
    top: int = 10
    """Clips to print."""
    encoder: str | None = None
    """Where the encoder of the embeddings lies, if it has moved since."""


def parse_args(argv: Sequence[str]) -> EmbedArgs | NeighboursArgs:
    if "--neighbours" in {a.partition("=")[0] for a in argv}:
        return parse(NeighboursArgs, str(NeighboursArgs.__doc__), argv)
    return parse(EmbedArgs, __doc__ or "", argv)


def main(args: EmbedArgs | NeighboursArgs) -> None:
    """Embed, or print neighbours."""
    if isinstance(args, NeighboursArgs):
        announce(f"neighbours of {args.neighbours} in {args.output}")
    else:
        announce(f"embed: {args.input} by {args.encoder} -> {args.output}")
    from pipelines.jobs import embed

    if isinstance(args, NeighboursArgs):
        embed.neighbours(args)
    else:
        embed.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
