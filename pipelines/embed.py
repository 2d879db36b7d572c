"""Embeddings of audio files or shards as Parquet, in one Ray Data job. Interrupted at any time, the same command goes
on. With --neighbours QUERY.wav --output EMB, print the clips of a finished folder that are most like a recording."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ajepa.choices import Branch, LastSegment, Level, Pooling, Precision
from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class EmbedArgs:
    """Embed clips."""

    encoder: str
    """A run folder, a checkpoint or an export; a local path or a URI."""
    input: str
    """The folder, file of a list (of Kaldi's also its folder) or shard folder; a local path or a URI."""
    output: str
    """The embedding folder to write; a local path or a URI."""
    source: Literal["folder", "manifest", "parquet", "webdataset", "hdf5", "shards"] = "folder"
    """Where clips come from: a `folder` of audio files, a `manifest` (a list: CSV, TSV, Parquet, JSON Lines, lhotse,
    Kaldi, AST's JSON), `parquet` files that hold the sound, `webdataset` (tar archives), `hdf5` packs, or
    `shards`, which a shard folder is taken for by itself."""
    level: Level = "clip"
    """A vector a `clip`, a `frame` of 160 ms, or a `patch` of 160 ms and 16 mel bins."""
    pooling: Pooling = "mean"
    """Level `clip`: how patches become one vector."""
    layers: tuple[int, ...] | None = None
    """Encoder layers from 1 to its depth, concatenated; by default the last one after its norm."""
    branch: Branch | None = None
    """Which encoder of a run: the EMA target encoder or the context encoder; by default the one that its
    objective evaluates."""
    labels_from_folders: bool = False
    """Source `folder`: label each clip with the name of the subfolder it lies in."""
    columns: tuple[str, ...] = ()
    """Which column stands for which of ours: of a `manifest` as uri=file labels=category (uri, clip_id, start_s,
    duration_s, end_s, split, fold, labels; `labels=` takes none), of `parquet` as audio=sound, of `webdataset` as
    labels=json.tag. Usual names are known without it."""
    segment: float | None = None
    """Cut recordings longer than this many seconds into consecutive clips of that length; by default a recording is
    one clip of any length up to --max-seconds."""
    segment_last: LastSegment = "pad"
    """With --segment: keep the shorter piece at a recording's end (`pad`) or leave it out (`drop`)."""
    max_seconds: float = 600.0
    """Longest clip in seconds: longer ones are cut."""
    precision: Precision = "fp32"
    """What the encoder multiplies in; embeddings are float32."""
    num_workers: int | None = None
    """Processes that hold a model; by default one a GPU of the cluster, or one a CPU where there is no GPU."""
    batch_size: int | None = None
    """Clips computed at a time; by default as many as keep a worker busy. Embeddings do not depend on it."""
    clips_per_part: int | None = None
    """Clips in an output file; by default an eighth of the clips, between 32 and 500. Shards become a part each."""
    log_model: bool = False
    """Log the encoder to MLflow as a model, beside the run."""
    overwrite: bool = False
    """Delete embeddings or an unfinished job found at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's, $MLFLOW_TRACKING_URI or mlflow.db in this directory."""


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
