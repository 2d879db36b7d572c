"""The pictures of a probe: which class is taken for which, and the test clips' embeddings on a plane."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ajepa.evaluation.linear import standardise
from ajepa.evaluation.tables import plain
from pipelines.reports.plots import GREY, save

CLASSES = 60  # drawn in a confusion matrix; of more, those with the most errors
NAMED_CLASSES = 50  # of a map
MAP_CLIPS = 2000  # at most
PERPLEXITY, COMPONENTS = 30, 50


def draw_confusion(table: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """Share of each class's clips (row) by the class they are taken for (column); classes without a clip left out.

    Args:
        table: [C, C] clips, by label and predicted label.
    """
    shown = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))
    if len(shown) > CLASSES:
        wrong = (table.sum(axis=1) + table.sum(axis=0) - 2 * np.diag(table))[shown]
        shown = np.sort(shown[np.argsort(-wrong, kind="stable")[:CLASSES]])
        title += f"; the {CLASSES} classes with the most errors"
    share = table[np.ix_(shown, shown)] / np.maximum(table[shown].sum(axis=1, keepdims=True), 1)
    count = len(shown)
    side = 2.6 + max(0.42 * count if count <= 20 else 0.2 * count, 2.5)
    figure, axis = plt.subplots(figsize=(side + 0.6, side), layout="constrained")
    # Where no numbers fit, small shares must show by colour alone.
    image = axis.imshow(100 * share, cmap="Blues", norm=PowerNorm(1.0 if count <= 20 else 0.5, vmin=0, vmax=100))
    size = 10 if count <= 20 else 7
    labels = [plain(names[int(i)], 22) for i in shown]
    axis.set_xticks(range(count), labels, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(range(count), labels, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if count <= 20:
        for row, column in np.argwhere(share > 0):
            value = share[row, column]
            axis.text(column, row, str(table[shown[row], shown[column]]), ha="center", va="center", fontsize=8,
                      color="white" if value > 0.5 else "black")  # fmt: skip
    else:
        axis.set_xticks(np.arange(count) - 0.5, minor=True)
        axis.set_yticks(np.arange(count) - 0.5, minor=True)
        axis.grid(which="minor", color="0.92", linewidth=0.4)
        axis.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, pad=0.02)
    bar.set_label("% of the true class's clips" + (" (numbers: clips)" if count <= 20 else ""))
    axis.set_title(title, fontsize=11, parse_math=False)
    save(figure, path)


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, D] -> [n, 2] by PCA to COMPONENTS dimensions, then t-SNE (van der Maaten & Hinton, 2008). Deterministic."""
    mean, std = standardise(features)
    values = (features - mean) / std
    components = min(COMPONENTS, *values.shape)
    reduced = PCA(components, svd_solver="full" if min(values.shape) < 1000 else "randomized", random_state=seed)
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced.fit_transform(values))


def draw_map(
    features: np.ndarray, targets: np.ndarray, names: Sequence[str], title: str, path: Path, seed: int = 0
) -> None:
    """Test clips on a plane, near each other where their embeddings are, coloured by class. Of many clips MAP_CLIPS
    drawn ones; a clip with several labels has the colour of its rarest; classes beyond the NAMED_CLASSES commonest
    are grey.

    Args:
        features: [n, D].
        targets: [n, C] bool.
    """
    if len(features) > MAP_CLIPS:
        rows = np.sort(np.random.default_rng(seed).choice(len(features), MAP_CLIPS, replace=False))
        title += f"; {MAP_CLIPS} of {len(features)} clips"
        features, targets = features[rows], targets[rows]
    points = project(features, seed)
    own = np.where(targets, targets.sum(axis=0), len(targets) + 1).argmin(axis=1)
    classes, sizes = np.unique(own, return_counts=True)
    common = np.sort(classes[np.argsort(-sizes, kind="stable")[:NAMED_CLASSES]])
    figure, axis = plt.subplots(figsize=(9.5, 7.5), layout="constrained")
    rest = ~np.isin(own, common)
    axis.scatter(*points[rest].T, s=8, color=GREY, alpha=0.5, linewidths=0)
    few = len(common) <= 20
    for number, label in enumerate(common):
        colour = _colour(number, len(common))
        cloud = points[own == label]
        axis.scatter(*cloud.T, s=22 if len(points) < 1000 else 12, color=colour, alpha=0.8, linewidths=0,
                     label=f"{plain(names[label], 24)}" if few else None)  # fmt: skip
        if not few:
            middle = cloud[np.square(cloud - np.median(cloud, axis=0)).sum(axis=1).argmin()]
            axis.annotate(
                plain(names[label], 18), middle, fontsize=7, ha="center", parse_math=False,
                bbox={"facecolor": "white", "edgecolor": colour, "alpha": 0.75, "pad": 1, "linewidth": 0.8},
            )  # fmt: skip
    if few:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=1.5)
        for text in legend.get_texts():
            text.set_parse_math(False)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=11, parse_math=False)
    save(figure, path)


def _colour(number: int, count: int) -> tuple[float, ...]:
    if count <= 10:
        return plt.get_cmap("tab10")(number)
    if count <= 20:
        return plt.get_cmap("tab20")(number)
    return plt.get_cmap("gist_rainbow")(number * 0.6180339887 % 1)  # neighbours in the list far apart in colour
