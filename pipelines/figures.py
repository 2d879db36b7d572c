"""The pictures: log-mels with their masks, masking strategies, training curves, and an ablation's accuracies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ajepa.config import PATCH, Config, MaskConfig, MaskStrategy
from ajepa.model.masking import sample_masks
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader


def draw_masks(dataset: ShardDataset, config: Config, path: Path, count: int = 6) -> None:
    """Crops as the model gets them, each with one mask: what is veiled is what it has to predict."""
    # One clip of each label in turn, so that the picture shows different sounds.
    reader = ShardReader(
        dataset, crop_frames=config.model.crop_frames, batch_size=dataset.num_clips, seed=config.train.seed
    )
    batch = reader.batch(0)
    labels = dataset.read_columns(["labels"])["labels"].to_pylist()
    first: dict[Any, int] = {}
    for i, row in enumerate(batch.rows):
        first.setdefault(tuple(labels[row]), i)
    chosen = (list(first.values()) + [i for i in range(len(batch.rows)) if i not in first.values()])[:count]
    progress = np.ones(len(chosen))  # a curriculum is shown at its end
    _, targets = sample_masks(config.mask, config.model.grid, config.train.seed, batch.samples[chosen], progress)
    columns = 3
    lines = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 2.9 * lines), layout="constrained", squeeze=False
    )
    rows_in_grid, columns_in_grid = config.model.grid
    for axis in axes.flat[len(chosen) :]:
        axis.set_visible(False)
    for axis, i, target in zip(axes.flat, chosen, targets, strict=False):
        log_mel = batch.log_mel[i].astype(np.float32)
        seconds = config.model.crop_frames / dataset.front_end.frame_rate
        extent = (0, seconds, 0, config.model.n_mels)
        low, high = np.percentile(log_mel, [2, 99.5])
        axis.imshow(log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=high)
        flat = np.zeros(config.model.num_patches)
        flat[target] = 0.72
        veil = np.kron(flat.reshape(rows_in_grid, columns_in_grid), np.ones((PATCH, PATCH)))
        shade = np.zeros((*veil.shape, 4))
        shade[..., :3], shade[..., 3] = 0.85, veil
        axis.imshow(shade, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
        names = ", ".join(dataset.label_names[j] for j in labels[batch.rows[i]]) or "unlabelled"
        axis.set_title(names, fontsize=10)
        axis.set_xlabel("seconds")
        axis.set_ylabel("mel bin")
    share = len(targets[0]) / config.model.num_patches
    figure.suptitle(f"log-mel crops; the {share:.0%} of patches under the veil are predicted from the rest")
    save(figure, path)


def draw_mask_strategies(config: MaskConfig, path: Path, seed: int = 0) -> None:
    """Each strategy under the settings of `config`, on the 8 x 64 and the 8 x 8 grid: two masks of a batch, and how
    often each patch is context over 4000 masks. A curriculum is shown at the start and at the end of training."""
    strategies, grids, count = get_args(MaskStrategy), ((8, 64), (8, 8)), 4000
    figure, axes = plt.subplots(
        len(strategies), 6, figsize=(16, 1.4 * len(strategies) + 1), layout="constrained", squeeze=False,
        width_ratios=(8, 8, 8, 3, 3, 3),
    )  # fmt: skip
    for line, strategy in zip(axes, strategies, strict=True):
        for i, grid in enumerate(grids):
            context, _ = sample_masks(
                replace(config, strategy=strategy), grid, seed, np.arange(count), np.linspace(0, 1, count)
            )
            shown = np.zeros((count, grid[0] * grid[1]))
            np.put_along_axis(shown, context, 1, axis=1)
            often = shown.mean(axis=0)
            for axis, picture in zip(line[3 * i : 3 * i + 3], (shown[0], shown[-1], often), strict=True):
                image = axis.imshow(
                    picture.reshape(grid), origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1,
                    interpolation="nearest",
                )  # fmt: skip
                axis.set_xticks([])
                axis.set_yticks([])
            line[3 * i + 2].set_xlabel(f"{100 * often.min():.0f} to {often.max():.0%}")
            line[3 * i].set_xlabel(f"context {context.shape[1] / often.size:.1%}")
        line[0].set_ylabel(strategy.replace("_", "\n"))
    for i, title in enumerate(("8 x 64: a mask", "another", "over all masks", "8 x 8: a mask", "another", "over all")):
        axes[0, i].set_title(title, fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
    bar.set_label("share of masks in which the patch is context (0: always a target)")
    figure.suptitle(f"bright patches are context, dark ones targets; placement {config.placement}")
    save(figure, path)


def draw_training(history: Sequence[dict[str, Any]], width: int, path: Path) -> None:
    """Loss, effective rank and feature spread over steps."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    _curve(axes[0], history, "loss", "prediction loss")
    _curve(axes[1], history, "effective_rank", f"effective rank of {width} (fixed crops)")
    axes[1].set_ylim(bottom=0)
    _curve(axes[2], history, "target_std", "targets")
    _curve(axes[2], history, "prediction_std", "predictions")
    axes[2].set_title("standard deviation over patches")
    axes[2].legend()
    axes[2].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save(figure, path)


def draw_ablation(
    title: str,
    labels: Sequence[str],
    accuracies: Sequence[Sequence[float]],
    baselines: dict[str, float],
    path: Path,
) -> None:
    """Accuracy of each setting (a dot a seed, a bar their mean) over the baselines' lines."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.1 * len(labels), 4), layout="constrained")
    for i, values in enumerate(accuracies):
        axis.bar(i, np.mean(values), color="#4878a8", width=0.6, zorder=2)
        axis.scatter([i] * len(values), values, color="black", s=14, zorder=3)
    for (name, value), style in zip(baselines.items(), ("--", ":"), strict=False):
        axis.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{name} {value:.3f}", zorder=4)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylabel("probe accuracy")
    axis.set_title(title)
    axis.set_ylim(0, min(1.0, max(max(v) for v in [*accuracies, list(baselines.values())]) * 1.2))
    axis.legend(loc="lower right")
    axis.grid(axis="y", alpha=0.3)
    save(figure, path)


def _curve(axis: Axes, history: Sequence[dict[str, Any]], key: str, label: str) -> None:
    points = [(h["step"], h[key]) for h in history if key in h and np.isfinite(h[key])]
    axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "")
    axis.set_title(label)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
