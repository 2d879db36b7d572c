"""What every figure shares: a backend without a display, colours, and how it is written."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ajepa import storage

BLUE, ORANGE, GREEN, GREY = "#4878a8", "#d9822b", "#4f9d69", "0.55"


def save(figure: Any, path: Path) -> None:
    """Write a PNG, its folder made where it is missing, and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script the font lacks is drawn as boxes
        with storage.atomic_output(str(path)) as stream:
            figure.savefig(stream, dpi=120, format="png")
    plt.close(figure)
