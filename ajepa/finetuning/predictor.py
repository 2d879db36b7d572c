"""Clips to parts of predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.choices import PredictionLevel
from ajepa.errors import UserError
from ajepa.finetuning.audio_classifier import THRESHOLD, AudioClassifier
from ajepa.inference.part_writer import MAX_SECONDS, PartWriter


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """What a prediction is."""

    level: PredictionLevel = "clip"
    hop: float | None = None  # of level "window", seconds; None: the length of a window
    max_seconds: float = MAX_SECONDS  # of a clip; longer ones are cut


def prediction_schema(level: PredictionLevel, label_names: Sequence[str]) -> pa.Schema:
    """A manifest row, then `probabilities`, a float a label, and `predicted`, label ids; of level "window" lists of
    both, with `time_s`, seconds from the clip's beginning to that of each window."""
    vector, ids = pa.list_(pa.float32(), len(label_names)), pa.list_(pa.int32())
    extra = {
        "clip": [("probabilities", vector), ("predicted", ids)],
        "window": [
            ("time_s", pa.list_(pa.float32())),
            ("probabilities", pa.list_(vector)),
            ("predicted", pa.list_(ids)),
        ],
    }[level]
    about = {"level": level, "model_labels": list(label_names)}
    return pa.schema([*MANIFEST_SCHEMA, *extra], metadata={"ajepa.prediction": json.dumps(about)})


class Predictor(PartWriter):
    """A classifier with settings: log-mels to probabilities, files and shards to parts; see `PartWriter`.

    Raises:
        UserError: a hop that makes no sense.
    """

    not_finite = "model: a probability is not finite"

    def __init__(
        self,
        classifier: AudioClassifier,
        settings: PredictSettings,
        *,
        batch_size: int | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(classifier.audio, settings.max_seconds, batch_size=batch_size, threads=threads)
        self.classifier, self.settings = classifier, settings
        if settings.hop is not None and settings.level != "window":
            raise UserError(f"--hop {settings.hop:g} is for --level window; a {settings.level} is one prediction")
        try:
            self.hop = classifier.hop_frames(settings.hop)
        except ValueError as error:
            raise UserError(f"--hop: {error}") from error
        self.schema = prediction_schema(settings.level, classifier.label_names)

    def starts(self, frames: int) -> list[int]:
        """First frame of each window of a clip; of level "clip" there is one, the clip."""
        return [0] if self.settings.level == "clip" else self.classifier.window_starts(frames, self.hop)

    @torch.inference_mode()
    def compute(self, log_mels: Sequence[Tensor]) -> list[np.ndarray]:
        """Raw log-mels [n_mels, frames] of any lengths to probabilities [W, C] float32 each: W is 1 for a clip."""
        starts = [self.starts(log_mel.shape[-1]) for log_mel in log_mels]
        whole = self.settings.level == "clip"
        views = [
            log_mel if whole else log_mel[:, s : s + self.classifier.window_frames]
            for log_mel, first in zip(log_mels, starts, strict=True)
            for s in first
        ]
        found = np.empty((len(views), len(self.classifier.label_names)), np.float32)
        for batch, padded, num_frames in self.batches(views):
            found[batch] = self.classifier.probabilities(padded, num_frames).cpu().numpy()
        return np.split(found, np.cumsum([len(first) for first in starts])[:-1])

    def table(self, rows: list[dict[str, Any]], frames: list[int], values: list[np.ndarray]) -> pa.Table:
        flat = np.concatenate(values)
        probabilities: pa.Array = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        predicted = predicted_ids(flat, self.classifier.multi_label)
        columns = pa.Table.from_pylist(rows, MANIFEST_SCHEMA).columns
        if self.settings.level == "window":
            offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
            probabilities, predicted = (pa.ListArray.from_arrays(offsets, v) for v in (probabilities, predicted))
            rate = self.encoder.front_end.frame_rate
            columns.append(pa.array([np.array(self.starts(n)) / rate for n in frames], pa.list_(pa.float32())))
        return pa.table([*columns, probabilities, predicted], schema=self.schema)


def predicted_ids(probabilities: np.ndarray, multi_label: bool) -> pa.ListArray:
    """Ids of the labels predicted for each of [n, C]: those from THRESHOLD on, or the most probable one."""
    if multi_label:
        row, label = np.nonzero(probabilities >= THRESHOLD)
        counts = np.bincount(row, minlength=len(probabilities))
    else:
        label, counts = probabilities.argmax(axis=1), np.ones(len(probabilities), np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(label, pa.int32()))
