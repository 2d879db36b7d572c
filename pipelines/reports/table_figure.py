"""The picture of a table: scores of each setting over seeds, with the baselines' beside them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ajepa.evaluation.comparison import MEL, RANDOM
from ajepa.experiments.report import Line, main_pooling
from ajepa.finetuning.start import SUPERVISED
from pipelines.reports.plots import BLUE, save

BASELINES = {RANDOM: "--", MEL: ":", SUPERVISED: "-."}


def draw_table(title: str, lines: Sequence[Line], path: Path) -> None:
    """A panel a protocol: a bar is the mean over seeds in its main pooling, its error bar their standard deviation, a
    dot a seed; baselines are lines."""
    protocols = list(dict.fromkeys(p for line in lines for p, _ in line.scores))
    settings = [line for line in lines if line.setting not in BASELINES]
    width = 1.6 + 1.1 * max(1, len(settings))
    figure, axes = plt.subplots(
        1, len(protocols), figsize=(width * len(protocols), 4), layout="constrained", squeeze=False
    )
    for axis, protocol in zip(axes.flat, protocols, strict=True):
        pooling = main_pooling(protocol, (key for line in lines for key in line.scores))
        for i, line in enumerate(settings):
            values = line.scores.get((protocol, pooling), [])
            if values:
                spread = np.std(values, ddof=1) if len(values) > 1 else None
                axis.bar(i, np.mean(values), yerr=spread, capsize=5, color=BLUE, width=0.6, zorder=2)
                axis.scatter([i] * len(values), values, color="black", s=12, zorder=3)
        for line in lines:
            values = line.scores.get((protocol, pooling), [])
            if line.setting in BASELINES and values:
                mean = float(np.mean(values))
                style = BASELINES[line.setting]
                axis.axhline(
                    mean, color="black", linestyle=style, linewidth=1, label=f"{line.setting} {mean:.3f}", zorder=4
                )
        axis.set_xticks(range(len(settings)), [line.setting for line in settings], rotation=30, ha="right")
        axis.set_ylabel("score")
        axis.set_title(f"{protocol}, {pooling} pooling", fontsize=11)
        axis.set_ylim(0, 1)
        axis.grid(axis="y", alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    save(figure, path)
