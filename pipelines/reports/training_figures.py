"""The pictures: log-mels with masks and prediction errors, masking strategies, training curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from ajepa.audio.normalise import Normaliser
from ajepa.config import Config
from ajepa.evaluation.tables import plain
from ajepa.model.masking import sample_masks
from ajepa.objectives.base import Objective
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import Batch, ShardReader
from ajepa.training.diagnostics import MAX_CROPS, RANK_SHARE, judge, latest, patch_errors
from pipelines.reports.plots import BLUE, GREEN, GREY, ORANGE, save

CANDIDATES = 256  # crops, the first of a run, that the pictures choose from
SILENT = 0.5  # log units: a crop that varies less shows nothing
VERDICT_COLOURS = {"learning": "#2e7d4f", "no sign of collapse": "#444444", "watch": "#b36b00", "collapsing": "#b3261e"}


def draw_masks(dataset: ShardDataset, config: Config, path: Path, count: int = 6) -> None:
    """Crops as the model gets them, each with one mask: the pale patches are those it has to predict."""
    batch, names = choose_crops(dataset, config, count)
    _, targets = _masks(config, batch)
    columns = 3
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 2.9 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, log_mel, name, target in zip(axes.flat, batch.log_mel, names, targets, strict=False):
        _draw_log_mel(axis, log_mel, dataset, config, masked=target)
        axis.set_title(name, fontsize=10, parse_math=False)
        axis.set_xlabel("seconds")
        axis.set_ylabel("mel bin")
    share = len(targets[0]) / config.model.num_patches
    figure.suptitle(f"log-mel crops; {share:.0%} of patches are masked (pale) and predicted from the rest")
    save(figure, path)


def draw_predictions(model: Objective, dataset: ShardDataset, path: Path, count: int = 4) -> None:
    """What is hard to predict: a few fixed crops, the same with their masks, and the error of each target patch.

    Args:
        model: plain (not wrapped), on any device; its config is the run's.
        count: crops, one of each label first.
    """
    config = model.config
    batch, names = choose_crops(dataset, config, count)
    context, targets = _masks(config, batch)
    device = next(model.parameters()).device
    log_mel = Normaliser(dataset.statistics).to(device)(torch.from_numpy(batch.log_mel).to(device))
    errors = patch_errors(model, log_mel, *(torch.from_numpy(i).to(device) for i in (context, targets)))
    maps = errors.cpu().numpy().reshape(-1, *config.model.grid)
    figure, axes = plt.subplots(
        3,
        len(names),
        figsize=(3.1 * len(names) + 1.1, 7.2),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    colours = plt.get_cmap("viridis").with_extremes(bad="0.85")
    highest = float(np.nanpercentile(maps, 99))
    for column, (crop, name, target, error) in enumerate(zip(batch.log_mel, names, targets, maps, strict=True)):
        top, middle, bottom = axes[:, column]
        _draw_log_mel(top, crop, dataset, config)
        _draw_log_mel(middle, crop, dataset, config, masked=target)
        image = bottom.imshow(
            error, origin="lower", aspect="auto", extent=_extent(dataset, config), cmap=colours, vmin=0, vmax=highest
        )
        top.set_title(name, fontsize=10, parse_math=False)
        bottom.set_title(f"mean {np.nanmean(error):.3f}", fontsize=9)
        bottom.set_xlabel("seconds")
    for axis, name in zip(axes[:, 0], ("log-mel", "targets masked (pale)", "error (grey: context)"), strict=True):
        axis.set_ylabel(f"{name}\nmel bin")
    train = config.train
    label = (
        f"{train.loss} of a predicted patch".replace("_", " ")
        if train.objective == "jepa"
        else f"loss of {train.objective}"
    )
    figure.colorbar(image, ax=axes[2, :], label=label, extend="max", pad=0.01)
    save(figure, path)


def choose_crops(dataset: ShardDataset, config: Config, count: int) -> tuple[Batch, list[str]]:
    """Up to `count` crops of the first ones a run trains on, one of each label and no silence first; label names."""
    size = min(CANDIDATES, dataset.num_clips)
    reader = ShardReader(dataset, crop_frames=config.model.crop_frames, batch_size=size, seed=config.train.seed)
    batch = reader.batch(0)
    labels = dataset.read_columns(["labels"])["labels"].take(batch.rows).to_pylist()
    silent = batch.log_mel.astype(np.float32).std(axis=(1, 2)) < SILENT
    order = np.argsort(silent, kind="stable").tolist()
    first: dict[tuple[int, ...], int] = {}
    for i in order:
        first.setdefault(tuple(labels[i]), i)
    seen = set(first.values())
    chosen = [*first.values(), *(i for i in order if i not in seen)][:count]
    names = [plain(", ".join(dataset.label_names[j] for j in labels[i]), 36) or "unlabelled" for i in chosen]
    return Batch(batch.log_mel[chosen], batch.samples[chosen], batch.rows[chosen]), names


def _masks(config: Config, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(context, targets) of a batch; a curriculum is shown at its end."""
    return sample_masks(config.mask, config.model.grid, config.train.seed, batch.samples, np.ones(len(batch.samples)))


def _extent(dataset: ShardDataset, config: Config) -> tuple[float, float, float, float]:
    """Of a crop, in seconds and mel bins."""
    return 0, config.model.crop_frames / dataset.front_end.frame_rate, 0, config.model.n_mels


def _draw_log_mel(
    axis: Axes, log_mel: np.ndarray, dataset: ShardDataset, config: Config, masked: np.ndarray | None = None
) -> None:
    """A crop [n_mels, crop_frames] on its own colour scale, and the patches with the given indices made pale."""
    log_mel, extent = log_mel.astype(np.float32), _extent(dataset, config)
    low, high = np.percentile(log_mel, [2, 99.5])
    axis.imshow(log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=high)
    if masked is not None:
        shade = np.full((config.model.num_patches, 4), 0.85)
        shade[:, 3] = 0
        shade[masked, 3] = 0.72
        pale = shade.reshape(*config.model.grid, 4)
        axis.imshow(pale, origin="lower", aspect="auto", extent=extent, interpolation="nearest")


def draw_training(history: Sequence[dict[str, Any]], width: int, path: Path, crops: int = MAX_CROPS) -> None:
    """A run at a glance, with its verdict: loss, ranks, online probe over its baselines, spread, cosines, optimisation.

    Args:
        history: the run's reports; what no report holds is left empty, with a note.
        width: of the encoder.
        crops: that health was measured on.
    """
    figure, axes = plt.subplots(2, 4, figsize=(16, 6.6), layout="constrained")
    (loss, rank, probe, spread), (cosine, gradient, lr, ema) = axes
    _curves(loss, history, "loss", {"loss": ""}, log=True)
    _curves(
        rank, history, f"effective rank (of {width})", {"effective_rank": "clips", "patch_rank": "patches"}, bottom=0
    )
    limit = RANK_SHARE * min(width, max(1, crops - 1))
    rank.axhline(limit, color=VERDICT_COLOURS["collapsing"], linestyle="--", linewidth=1)
    rank.annotate(
        f"{RANK_SHARE:.0%}: collapse", (1, limit), xycoords=("axes fraction", "data"), ha="right",
        xytext=(-3, 3), textcoords="offset points", fontsize=8, color=VERDICT_COLOURS["collapsing"],
    )  # fmt: skip
    _curves(probe, history, "online probe (accuracy)", {"online_linear": "linear", "online_knn": "kNN"})
    for key, colour, style, label in (
        ("online_linear_random", BLUE, "--", "linear, random init"),
        ("online_linear_mel", BLUE, ":", "linear, log-mel"),
        ("online_knn_random", ORANGE, "--", "kNN, random init"),
        ("online_knn_mel", ORANGE, ":", "kNN, log-mel"),
    ):
        if (value := latest(history, key)) is not None:
            probe.axhline(value, color=colour, linestyle=style, linewidth=1, label=f"{label} {value:.2f}")
    _curves(
        spread, history, "standard deviation over patches",
        {"target_std": "targets", "prediction_std": "predictions", "feature_std": "features (fixed crops)"}, bottom=0,
    )  # fmt: skip
    _curves(
        cosine, history, "mean cosine",
        {"clip_cosine": "between clips", "patch_cosine": "in a clip", "patch_cosine_centred": "in a clip, centred"},
    )  # fmt: skip
    cosine.set_ylim(top=1)
    _curves(gradient, history, "gradient norm", {"grad_norm": ""}, log=True)
    _curves(lr, history, "learning rate", {"lr": ""}, bottom=0)
    _curves(ema, history, "EMA momentum", {"ema": ""})
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:  # some would lie over their curves
            outside = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2, "frameon": False}
            axis.legend(fontsize=8, **(outside if axis in (probe, cosine) else {}))
    verdict = judge(history, width, crops)
    figure.suptitle(f"{verdict.state}: {verdict.reason}", color=VERDICT_COLOURS[verdict.state])
    save(figure, path)


def _curves(
    axis: Axes,
    history: Sequence[dict[str, Any]],
    title: str,
    keys: dict[str, str],
    *,
    log: bool = False,
    bottom: float | None = None,
) -> None:
    """Curves by key and legend ("": none) of what the history holds, finite values only."""
    values: list[float] = []
    for (key, label), colour in zip(keys.items(), (BLUE, ORANGE, GREEN), strict=False):
        points = [(h["step"], h[key]) for h in history if np.isfinite(h.get(key, np.nan))]
        if points:
            marker = "." if len(points) < 40 else ""
            axis.plot(*zip(*points, strict=True), color=colour, label=label or None, marker=marker)
            values += [value for _, value in points]
    axis.set_title(title, fontsize=11)
    if not values:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
        axis.set(xticks=[], yticks=[])
        return
    if log and max(values) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=bottom)
