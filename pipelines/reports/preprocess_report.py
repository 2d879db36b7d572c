"""The end report of a preprocess job, made from the finished dataset alone: the same after any resume."""

import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ajepa import storage
from ajepa.audio.statistics import STD_FLOOR
from ajepa.evaluation.tables import escape, markdown_table, plain
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.duplicates import find_in
from ajepa.shards.files import damaged_shard, read_parquet
from ajepa.shards.schema import BAD, OK, decode_log_mels
from pipelines.reports.copies_report import section, write_lists
from pipelines.reports.plots import BLUE, ORANGE, save

COLUMNS = ["duration_s", "source_rate", "split", "fold", "labels"]  # all that is read of every ok row
KINDS = 20  # of failures that are listed
SOUNDS = 12  # log-mels shown
LOOK_AHEAD = 256  # rows searched for a label not yet shown
CONSTANT = 10 * STD_FLOOR  # log units; about the step of float16 at the value of silence
PICTURES = {
    "durations.png": "How long the clips are, in seconds. A tall bar at the dashed line means that audio was cut "
    "there: raise `--clip-frames`. Everything far left of it means that most of a row is padding: lower it.",
    "sample_rates.png": "Clips by the sample rate of their file. Orange files lie below the front end's rate: "
    "they hold no sound above half of their own rate, so their upper mel bins are empty.",
    "bins.png": "Level of each mel bin over all valid frames. Training subtracts the mean and divides by the standard "
    "deviation; a marked bin hardly varies, so it carries noise or nothing.",
    "log_mels.png": "Clips spread over the dataset on one colour scale, valid frames only. Look for what should not "
    "be there: silence, one clip many times, a ceiling in frequency, sound that does not fit its label.",
}


def write_report(dataset: ShardDataset, folder: Path, remarks: Sequence[str] = (), missing: int = 0) -> list[Path]:
    """Write report.md and its pictures into a local folder; returns their paths.

    Args:
        remarks: of the source, a line each.
        missing: clips the source lists and has no audio of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = dataset.read_columns(COLUMNS)
    paths = [folder / name for name in ("report.md", *PICTURES)]
    draw_durations(dataset, rows["duration_s"].to_numpy(), folder / "durations.png")
    draw_sample_rates(dataset, rows["source_rate"], folder / "sample_rates.png")
    draw_bins(dataset, folder / "bins.png")
    draw_log_mels(dataset, rows["labels"], folder / "log_mels.png")
    parts = [
        "# Preprocess report",
        markdown_table(("quantity", "value"), _overview(dataset, rows, missing)),
        "## Failures",
    ]
    kinds = failure_kinds(dataset)
    if kinds:
        listed = list(kinds.items())[:KINDS]
        lines = [(kind, n, f"{n / dataset.num_failed:.1%}", clip, error) for kind, (n, clip, error) in listed]
        parts += [
            "Reasons that differ only in numbers (N), quoted text ('...') and paths (PATH) are one kind; "
            f"every failed clip is in `{BAD}/`.",
            markdown_table(("kind", "clips", "share of failures", "example", "its reason"), lines),
        ]
        if len(kinds) > KINDS:
            rest = dataset.num_failed - sum(n for _, (n, _, _) in listed)
            parts.append(f"{len(kinds) - KINDS} rarer kinds with {rest} clips are not listed.")
    else:
        parts.append("No clip failed.")
    found = find_in(dataset)
    parts += section(found)
    paths += write_lists(found, folder)
    if remarks:
        parts += ["## Remarks", "\n".join(f"- {escape(remark)}" for remark in remarks)]
    parts.append("## Pictures")
    parts += [f"![{name}]({name})\n\n{caption}" for name, caption in PICTURES.items()]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", errors="replace")
    return paths


def failure_kinds(dataset: ShardDataset) -> dict[str, tuple[int, str, str]]:
    """Kind of failure to (clips, clip id and reason of the first of them), the commonest first."""
    kinds: dict[str, tuple[int, str, str]] = {}
    for table in dataset.bad_tables(["clip_id", "uri", "error"]):
        for clip_id, uri, error in zip(*(c.to_pylist() for c in table.columns), strict=True):
            kind = kind_of(error, uri)
            count, first_id, first_error = kinds.get(kind, (0, clip_id, error))
            kinds[kind] = (count + 1, first_id, first_error)
    return dict(sorted(kinds.items(), key=lambda item: (-item[1][0], item[0])))


def kind_of(error: str, uri: str = "") -> str:
    """A failure's reason without what is particular to one clip. Codes (status 404, Errno 2) stay: they say what
    went wrong."""
    text = " ".join((error.replace(uri, "PATH") if uri else error).split())
    text = re.sub(r"(?<!\w)(['\"]).*?\1(?!\w)", "'...'", text)
    text = re.sub(r"(?<![\w/])(?:\w[\w+.-]*://|/|[A-Za-z]:\\)\S*[^\s:,;.)\]>]", "PATH", text)
    text = re.sub(r"\b0x[0-9a-fA-F]+", "N", text)
    return re.sub(r"(?<![\w.])(?<!status )(?<!Errno )[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?", "N", text)


def _overview(dataset: ShardDataset, rows: pa.Table, missing: int) -> list[tuple[str, str]]:
    """Name and value of each line of the first table."""
    config = dataset.front_end
    clips = dataset.num_clips + dataset.num_failed
    listed = set(dataset.file_names)
    shards = [size for name, size in storage.list_files(storage.join(dataset.path, OK)) if name in listed]
    labelled = pc.sum(pc.greater(pc.list_value_length(rows["labels"]), 0)).as_py() or 0
    limit = int(np.count_nonzero(_at_limit(dataset, rows["duration_s"].to_numpy())))
    constant = int(np.count_nonzero(dataset.statistics.std < CONSTANT))
    rows_shown = [
        ("clips ok", f"{dataset.num_clips}"),
        ("clips bad", f"{dataset.num_failed}"),
        ("share failed", f"{dataset.num_failed / clips:.2%}"),
        ("missing (listed by the source, no audio)", f"{missing}"),
        ("hours of valid frames", f"{dataset.hours:.2f}" if dataset.hours >= 1 else f"{dataset.hours:.4f}"),
        ("clips that fill the clip length", f"{limit}"),
        ("shards", f"{len(dataset.shards)}"),
        ("size of the shards", f"{sum(shards) / 1e6:.1f} MB" if sum(shards) < 1e9 else f"{sum(shards) / 1e9:.2f} GB"),
        ("labels", f"{len(dataset.label_names)}, on {labelled} clips"),
    ]
    for name, none in (("split", ""), ("fold", -1)):
        counts = sorted((c["values"], c["counts"]) for c in pc.value_counts(rows[name]).to_pylist())
        if any(value != none for value, _ in counts):
            shown = [f"{'none' if value == none else value}: {count}" for value, count in counts]
            rows_shown.append((f"{name}s", ", ".join(shown[:KINDS]) + (", ..." if len(shown) > KINDS else "")))
    return [
        *rows_shown,
        ("constant mel bins", f"{constant} of {config.n_mels}"),
        (
            "front end",
            f"{config.sample_rate} Hz, {config.n_mels} mel bins from {config.f_min:g} to {config.f_max:g} Hz, FFT "
            f"{config.n_fft}, window {config.win_length} and hop {config.hop_length} samples, up to "
            f"{config.clip_frames} frames ({_limit(dataset):g} s)",
        ),
        ("content hash", dataset.content_hash),
    ]


def _limit(dataset: ShardDataset) -> float:
    """Clip length, in seconds."""
    return dataset.front_end.clip_frames / dataset.front_end.frame_rate


def _at_limit(dataset: ShardDataset, durations: np.ndarray) -> np.ndarray:
    """Which clips [n] have audio for every frame of a row: `clip_samples` is where the writer cuts."""
    return durations >= dataset.front_end.clip_samples / dataset.front_end.sample_rate - 1e-6


def draw_durations(dataset: ShardDataset, durations: np.ndarray, path: Path) -> None:
    """Histogram of the clips' durations [n] in seconds."""
    limit, cut = _limit(dataset), _at_limit(dataset, durations).mean()
    counts, edges = np.histogram(durations, bins=64, range=(0, max(limit, durations.max())))
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axis.stairs(counts, edges, fill=True, color=BLUE)
    axis.axvline(limit, color="black", linestyle="--", linewidth=1, label=f"clip length {limit:g} s")
    _count_axis(axis, counts)
    axis.set_xlabel("duration in seconds")
    axis.set_title(f"median {np.median(durations):.2f} s; {cut:.1%} of the clips fill the clip length")
    axis.set_xlim(left=0)
    axis.legend()
    save(figure, path)


def draw_sample_rates(dataset: ShardDataset, source_rates: pa.ChunkedArray, path: Path) -> None:
    """Bars of clips by the sample rate of their file, in Hz."""
    counted = sorted((c["values"], c["counts"]) for c in pc.value_counts(source_rates).to_pylist())
    common = sorted(sorted(counted, key=lambda c: -c[1])[:SOUNDS])
    wanted = dataset.front_end.sample_rate
    names = [str(rate) for rate, _ in common]
    counts = [count for _, count in common]
    colours = [ORANGE if rate < wanted else BLUE for rate, _ in common]
    if len(counted) > SOUNDS:
        names, colours = [*names, "others"], [*colours, "0.6"]
        counts.append(sum(count for _, count in counted) - sum(counts))
    figure, axis = plt.subplots(figsize=(max(5.6, 1.5 + 0.85 * len(names)), 3.6), layout="constrained")
    bars = axis.bar(range(len(names)), counts, color=colours, width=0.6, zorder=2)
    axis.bar_label(bars, padding=2, fontsize=9)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-1, len(names))
    _count_axis(axis, np.array(counts))
    axis.margins(y=0.12)
    axis.set_xlabel("sample rate of the file in Hz")
    axis.set_title(f"resampled to {wanted} Hz" + (" (orange: from a lower rate)" if ORANGE in colours else ""))
    save(figure, path)


def draw_bins(dataset: ShardDataset, path: Path) -> None:
    """Mean +- standard deviation of each mel bin, and the deviation alone."""
    mean, std = dataset.statistics.mean, dataset.statistics.std
    bins = np.arange(len(mean))
    constant = std < CONSTANT
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    left.fill_between(bins, mean - std, mean + std, color=BLUE, alpha=0.25, linewidth=0)
    left.plot(bins, mean, color=BLUE)
    left.set_ylim((mean - std).min() - 0.5, (mean + std).max() + 0.5)
    left.set_title("mean and one standard deviation")
    right.plot(bins, std, color=BLUE)
    right.set_title(f"standard deviation; {constant.sum()} of {len(bins)} bins are constant")
    right.set_ylim(0, max(0.1, 1.08 * std.max()))
    if constant.any():
        right.plot(bins[constant], std[constant], "v", color=ORANGE, label=f"below {CONSTANT:g}", clip_on=False)
        right.legend()
    for axis in (left, right):
        axis.set_xlabel("mel bin")
        axis.set_ylabel("log power")
        axis.grid(alpha=0.3)
    save(figure, path)


def draw_log_mels(dataset: ShardDataset, labels: pa.ChunkedArray, path: Path) -> None:
    """Some clips' log-mels over their valid frames, on one colour scale. `labels` are those of all ok rows."""
    sounds = [_read_sound(dataset, row) for row in choose_rows(labels)]
    low, high = np.percentile(np.concatenate([log_mel.ravel() for _, log_mel in sounds]), [1, 99.8])
    columns = min(4, len(sounds))
    lines = -(-len(sounds) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns + 0.8, 2.6 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(sounds) :]:
        axis.set_visible(False)
    for axis, (name, log_mel) in zip(axes.flat, sounds, strict=False):
        extent = (0, log_mel.shape[1] / dataset.front_end.frame_rate, 0, dataset.front_end.n_mels)
        image = axis.imshow(
            log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=max(high, low + 1)
        )
        axis.set_title(name, fontsize=10, parse_math=False)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    for axis in axes[:, 0]:
        axis.set_ylabel("mel bin")
    figure.colorbar(image, ax=axes, label="log power", fraction=0.03, aspect=12 + 6 * lines, pad=0.01)
    save(figure, path)


def choose_rows(labels: pa.ChunkedArray) -> list[int]:
    """Up to SOUNDS rows evenly spread over the dataset, near each place the first with labels not yet chosen."""
    chosen, seen = [], set()
    edges = np.linspace(0, len(labels), min(SOUNDS, len(labels)) + 1).astype(int)
    for start, stop in itertools.pairwise(edges):
        near = [tuple(row or ()) for row in labels.slice(start, min(LOOK_AHEAD, stop - start)).to_pylist()]
        place = next((i for i, row in enumerate(near) if row not in seen), 0)
        seen.add(near[place])
        chosen.append(int(start) + place)
    return chosen


def _read_sound(dataset: ShardDataset, row: int) -> tuple[str, np.ndarray]:
    """A row's name and its log-mel [n_mels, valid frames], from the one row group that holds it."""
    first = np.cumsum([0, *(shard.rows for shard in dataset.shards)])
    index = int(np.searchsorted(first, row, side="right")) - 1
    shard, inner = dataset.shards[index].name, row - first[index]

    def parse(stream: Any) -> pa.Table:
        parquet = pq.ParquetFile(stream)
        groups = np.cumsum([0, *(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))])
        group = int(np.searchsorted(groups, inner, side="right")) - 1
        table = parquet.read_row_group(group, columns=["clip_id", "labels", "num_frames", "log_mel"])
        return table.slice(int(inner - groups[group]), 1)

    sound = read_parquet(storage.join(dataset.path, shard), parse, partial(damaged_shard, dataset.path, shard))
    log_mel = decode_log_mels(sound["log_mel"], dataset.front_end.n_mels, dataset.front_end.clip_frames)[0]
    names = ", ".join(dataset.label_names[j] for j in sound["labels"][0].as_py() or ())
    name = plain(names or sound["clip_id"][0].as_py(), 36)
    return name, log_mel[:, : sound["num_frames"][0].as_py()].astype(np.float32)


def _count_axis(axis: Axes, counts: np.ndarray) -> None:
    """Clips upwards, on a log scale where a linear one would hide the small bars."""
    log = counts.max() > 100 * counts[counts > 0].min()
    if log:
        axis.set_yscale("log")
        axis.set_ylim(bottom=0.5)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_axisbelow(True)
    axis.set_ylabel("clips (log scale)" if log else "clips")
    axis.grid(axis="y", alpha=0.3)
