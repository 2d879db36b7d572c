"""The pictures: log-mels with their masks, training curves, and an ablation's accuracies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ajepa.config import PATCH, Config
from ajepa.model.masking import sample_masks
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.reader import ShardReader


def draw_masks(dataset: ShardDataset, config: Config, path: Path, count: int = 6) -> None:
    """Crops as the model gets them, each with one mask: what is veiled is what it has to predict."""
    # One clip of each label in turn, so that the picture shows different sounds.
    reader = ShardReader(dataset, crop_frames=config.model.crop_frames, batch_size=1, seed=config.train.seed)
    labels = dataset.read_columns(["labels"])["labels"].to_pylist()
    rows = reader.epoch_order(0).tolist()
    first: dict[Any, int] = {}
    for row in rows:
        first.setdefault(tuple(labels[row]), row)
    chosen = list(dict.fromkeys([*first.values(), *rows]))[:count]
    batch = reader.crops_of(np.array(chosen))
    _, targets = sample_masks(config.mask, config.model.grid, config.train.seed, batch.samples)
    columns = 3
    lines = -(-len(chosen) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 2.9 * lines), layout="constrained", squeeze=False
    )
    rows_in_grid, columns_in_grid = config.model.grid
    for axis in axes.flat[len(chosen) :]:
        axis.set_visible(False)
    for axis, row, crop, target in zip(axes.flat, chosen, batch.log_mel, targets, strict=False):
        log_mel = crop.astype(np.float32)
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
        names = ", ".join(dataset.label_names[j] for j in labels[row]) or "unlabelled"
        axis.set_title(names, fontsize=10)
        axis.set_xlabel("seconds")
        axis.set_ylabel("mel bin")
    share = len(targets[0]) / config.model.num_patches
    figure.suptitle(f"log-mel crops; the {share:.0%} of patches under the veil are predicted from the rest")
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
