"""Audio files to verified log-mel shards, as one Ray Data job. Interrupted at any time, the same command goes on."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from ajepa.choices import KeepOrDrop, LastSegment, SourceName
from ajepa.config import FrontEndConfig
from pipelines.cli.arguments import option_value, parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class PreprocessArgs:
    """Turn audio into log-mel Parquet shards."""

    source: SourceName
    """Where clips come from: a `folder` of audio files, a `manifest` (a list: CSV, TSV, Parquet, JSON Lines, lhotse,
    Kaldi, AST's JSON), `parquet` files that hold the sound, `webdataset` (tar archives), `hdf5` packs, or a
    copy of `esc50`, `speech_commands` (v2) or `audioset` in the layout of its authors."""
    input: str
    """The folder, or the file of the list (of Kaldi's also its folder); of containers also a pattern, as
    'data/*.tar'. A local path or a URI (s3://, gs://, file://)."""
    output: str
    """The shard folder to write; a local path or a URI."""
    labels_from_folders: bool = False
    """Source `folder`: label each clip with the name of the subfolder it lies in."""
    whole_videos: bool = False
    """Source `audioset`: files hold whole videos' audio, to be cut at each segment's start."""
    columns: tuple[str, ...] = ()
    """Which column stands for which of ours: of a `manifest` as uri=file labels=category (uri, clip_id, start_s,
    duration_s, end_s, split, fold, labels; `labels=` takes none), of `parquet` as audio=sound, of `webdataset` as
    labels=json.tag. Usual names are known without it."""
    segment: float | None = None
    """Cut recordings longer than this many seconds into consecutive clips of that length; by default a recording
    is one clip, cut at --clip-frames."""
    segment_last: LastSegment = "pad"
    """With --segment: keep the shorter piece at a recording's end (`pad`) or leave it out (`drop`)."""
    clips_per_shard: int | None = None
    """Clips in a shard; by default an eighth of the clips, between 32 and 500."""
    num_workers: int | None = None
    """Tasks that run at once; by default one a CPU of the cluster."""
    dry_run: bool = False
    """Read a sample of the clips, say what the job would take and which share would fail, and write nothing."""
    append: bool = False
    """Add to the finished dataset at --output the clips of the source that it does not have, by their ids. The
    front end is that of the dataset; so are --duplicates and --silent where they are not given."""
    duplicates: KeepOrDrop = "keep"
    """Clips whose stored log-mel (up to --clip-frames) is that of another clip: keep them, or move all but the one with
    the smallest id to the bad rows."""
    silent: KeepOrDrop = "keep"
    """Clips of which every stored value is log(epsilon), as digital zero gives: keep them, or move them to the bad
    rows."""
    overwrite: bool = False
    """Delete a dataset or an unfinished job found at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
    front_end: Annotated[FrontEndConfig, tyro.conf.arg(name="")] = field(default_factory=FrontEndConfig)


@dataclass(frozen=True, kw_only=True)
class VerifyArgs:
    """Read a finished dataset back and check every row of it."""

    verify: str
    """The shard folder; a local path or a URI."""


@dataclass(frozen=True, kw_only=True)
class MergeArgs:
    """Make one dataset of two or more finished ones, with exact statistics."""

    merge: tuple[str, ...]
    """The shard folders; local paths or URIs. Same front end, no clip id twice."""
    output: str
    """The shard folder to write; a local path or a URI."""


def parse_args(argv: Sequence[str]) -> PreprocessArgs | VerifyArgs | MergeArgs:
    given = {a.partition("=")[0] for a in argv}
    if "--verify" in given:
        return parse(VerifyArgs, str(VerifyArgs.__doc__), argv)
    if "--merge" in given:
        return parse(MergeArgs, str(MergeArgs.__doc__), argv)
    default = PreprocessArgs(source=tyro.MISSING, input=tyro.MISSING, output=tyro.MISSING)
    output = option_value(argv, "--output")
    if "--append" in given and output is not None:
        default = dataclasses.replace(default, **settings_of(output))
    others = "With --verify SHARDS, check a finished dataset; with --merge SHARDS SHARDS --output PATH, join them."
    return parse(PreprocessArgs, f"{__doc__} {others}", argv, default)


def settings_of(output: str) -> dict[str, Any]:
    """What --append takes from the dataset where no option says otherwise; nothing where there is none: the job refuses
    that."""
    from ajepa.shards.append import settings  # pyarrow takes long to import

    return settings(output)


def main(args: PreprocessArgs | VerifyArgs | MergeArgs) -> None:
    """Do what the arguments describe."""
    if isinstance(args, PreprocessArgs):
        announce(f"preprocess: {args.source} {args.input} -> {'a sample' if args.dry_run else args.output}")
    elif isinstance(args, VerifyArgs):
        announce(f"verify: {args.verify}")
    else:
        announce(f"merge: {' '.join(args.merge)} -> {args.output}")
    from pipelines.jobs import preprocess

    if isinstance(args, VerifyArgs):
        preprocess.verify(args.verify)
    elif isinstance(args, MergeArgs):
        preprocess.merge(args)
    elif args.append:
        from pipelines.jobs import append

        append.main(args)
    elif args.dry_run:
        preprocess.dry_run(args)
    else:
        preprocess.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
