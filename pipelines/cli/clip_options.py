"""The options of every job that runs a model over clips: where they come from, how they are cut, who computes them."""

from dataclasses import dataclass
from typing import Literal

from ajepa.choices import LastSegment, Precision


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Clips in, a folder of parts out."""

    input: str
    """The folder, file of a list (of Kaldi's also its folder) or shard folder; a local path or a URI."""
    output: str
    """The folder to write; a local path or a URI."""
    source: Literal["folder", "manifest", "parquet", "webdataset", "hdf5", "shards"] = "folder"
    """Where clips come from: a `folder` of audio files, a `manifest` (a list: CSV, TSV, Parquet, JSON Lines, lhotse,
    Kaldi, AST's JSON), `parquet` files that hold the sound, `webdataset` (tar archives), `hdf5` packs, or
    `shards`, which a shard folder is taken for by itself."""
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
    """What the encoder multiplies in; its output is float32."""
    num_workers: int | None = None
    """Processes that hold a model; by default one a GPU of the cluster, or one a CPU where there is no GPU."""
    batch_size: int | None = None
    """Clips computed at a time; by default as many as keep a worker busy. Results do not depend on it."""
    clips_per_part: int | None = None
    """Clips in an output file; by default an eighth of the clips, between 32 and 500. Shards become a part each."""
    overwrite: bool = False
    """Delete a finished folder or an unfinished job found at the output first."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's, $MLFLOW_TRACKING_URI or mlflow.db in this directory."""
