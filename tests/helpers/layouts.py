"""Every layout in which sound is held, by name. A function writes it into a folder, and says what must come of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from helpers import container_layouts as held
from helpers.containers import Layout
from helpers.list_layouts import LISTS

LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "AudioSet": held.audioset,
    "AudioSet, names": lambda folder: held.audioset(folder, "human_labels"),
    "AudioSet, class table": lambda folder: held.audioset(folder, table=True),
    "ESC-50": held.esc50,
    "FSD50K": held.fsd50k,
    "Common Voice": held.common_voice,
    "Common Voice, texts": lambda folder: held.common_voice(folder, "path"),
    "binary": lambda folder: held.plain_bytes(folder, pa.binary()),
    "large binary": lambda folder: held.plain_bytes(folder, pa.large_binary()),
    "LAION": held.laion,
    "tars with .cls": lambda folder: held.numbered_tars(folder, "cls"),
    "tars with .txt": lambda folder: held.numbered_tars(folder, "txt", ("labels=txt",)),
    "lhotse Shar": held.shar,
    "PANNs, int16": lambda folder: held.panns(folder, np.int16),
    "PANNs, float32, class table": lambda folder: held.panns(folder, np.float32, table=True),
    "PaSST": held.passt,
    **LISTS,
}
