"""A finished folder of predictions: predictions.json over its parts, see `PartFolder`; as CSV, and beside the labels
that the clips came with."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa import storage
from ajepa.choices import PredictionLevel
from ajepa.documents import refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.evaluation.metrics import multi_label_scores
from ajepa.finetuning.audio_classifier import THRESHOLD
from ajepa.inference.part_folder import FolderKind, PartFolder

PREDICTIONS_JSON = "predictions.json"
KIND = FolderKind("prediction folder", "predict", PREDICTIONS_JSON, version=1)
CSV_COLUMNS = ("clip_id", "start_s", "end_s", "label", "probability")
MAX_VALUES = 1 << 28  # probabilities that are held to measure mAP: 1 GiB


@dataclass(frozen=True, kw_only=True)
class Predictions(PartFolder):
    """What predictions.json says. Open it with `open_predictions`."""

    level: PredictionLevel
    model_labels: tuple[str, ...]  # in the order of the probabilities
    multi_label: bool
    window_s: float | None  # length of a window, of level "window"
    model: dict[str, Any]  # source, digest, precision

    @property
    def names_in_common(self) -> set[str]:
        """Labels that both the model and the clips may have."""
        return set(self.label_names) & set(self.model_labels)


def open_predictions(path: str) -> Predictions:
    """Read predictions.json of a finished folder.

    Raises:
        UserError: nothing there, an unfinished job, damaged, or of another version.
    """
    info = KIND.read(path)
    with refusing_damage(storage.join(storage.absolute(path), PREDICTIONS_JSON), KIND.again):
        require_types(info, model=dict, model_labels=list, multi_label=bool, window_s=(float, type(None)))
        return Predictions(
            **KIND.common(path, info),
            level=info["level"],
            model_labels=tuple(info["model_labels"]),
            multi_label=info["multi_label"],
            window_s=info["window_s"],
            model=info["model"],
        )


def finish_predictions(output: str, expected: int, about: dict[str, Any]) -> Predictions:
    """Check that every clip is there exactly once and write predictions.json, of which `about` is a part.

    Raises:
        UserError: the parts do not hold the expected clips, one is damaged, or not one clip could be read.
    """
    KIND.finish(output, expected, about)
    return open_predictions(output)


@dataclass(frozen=True)
class CsvSummary:
    """What was written."""

    lines: int
    empty: int  # clips or windows without a label that reached the threshold


def require_csv(path: str) -> None:
    """Refuse a place that write_csv would write over what is no CSV of predictions.

    Raises:
        UserError: there is something else, or no such kind of place.
    """
    path = storage.absolute(path)
    kind = storage.path_type(path)
    if kind == "folder":
        raise UserError(f"--csv {path!r} is a folder: name a file")
    if kind == "file":
        with storage.open_input(path) as stream:
            if stream.read(64).split(b"\n")[0].rstrip(b"\r") != ",".join(CSV_COLUMNS).encode():
                raise UserError(f"--csv {path!r} exists and is no CSV of predictions: name another file")


def write_csv(
    predictions: Predictions, path: str, top: int | None = None, threshold: float | None = None
) -> CsvSummary:
    """A line for each clip or window and label, the most probable label first.

    Args:
        top: most labels of a clip or window; by default one, or as many as reach the threshold where clips may have
            several.
        threshold: least probability; by default none, or THRESHOLD where clips may have several labels. With `top`
            alone, none.
    """
    several = predictions.multi_label
    most = top or (len(predictions.model_labels) if several else 1)
    least = threshold if threshold is not None else THRESHOLD if several and top is None else 0.0
    lines = empty = 0
    with storage.atomic_output(storage.absolute(path)) as stream:
        for start, end, clip_id, values in _segments(predictions):
            order = np.argsort(-values, kind="stable")[:most]
            chosen = [i for i in order.tolist() if values[i] >= least]
            text = io.StringIO()
            out = csv.writer(text, lineterminator="\n")
            if not lines and not empty:
                out.writerow(CSV_COLUMNS)
            for i in chosen:
                out.writerow([clip_id, start, end, predictions.model_labels[i], f"{values[i]:.6f}"])
            stream.write(text.getvalue().encode())
            lines, empty = lines + len(chosen), empty + (not chosen)
    return CsvSummary(lines, empty)


def _segments(predictions: Predictions) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """(start, end, clip id, probabilities [C]) of each clip or window, in seconds of its file."""
    window = predictions.level == "window"
    columns = ["clip_id", "start_s", "duration_s", "probabilities", *(["time_s"] if window else [])]
    for group in predictions.row_groups(columns):
        values, counts = _probabilities(predictions, group["probabilities"])
        times = pc.list_flatten(group["time_s"]).to_pylist() if window else [0.0] * len(group)
        place = 0
        rows = zip(*(group[name].to_pylist() for name in columns[:3]), counts, strict=True)
        for clip_id, first, duration, count in rows:
            for time in times[place : place + count]:
                begin = first + time
                ends = [first + duration] if duration is not None else []
                ends += [begin + predictions.window_s] if window and predictions.window_s else []
                yield f"{begin:.3f}", f"{min(ends):.3f}" if ends else "", clip_id, values[place]
                place += 1


def _probabilities(predictions: Predictions, column: pa.ChunkedArray) -> tuple[np.ndarray, list[int]]:
    """([n, C], rows of each clip) of a row group's column."""
    if predictions.level == "clip":
        counts = [1] * len(column)
    else:
        counts, column = pc.list_value_length(column).to_pylist(), pc.list_flatten(column)
    values = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return values.reshape(-1, len(predictions.model_labels)), counts


@dataclass(frozen=True)
class Agreement:
    """Predictions beside the labels of the input: a measurement, not an evaluation of the model on held-out clips."""

    metric: str  # "accuracy" or "mAP"
    score: float
    clips: int
    left_out: int  # clips with labels that the model has not, or, where a clip has one label, none or several


def agreement(predictions: Predictions) -> Agreement | None:
    """Accuracy, or mAP over the labels that occur. Windows of a clip are averaged. None where no clip has a label that
    the model knows, or where mAP would need more than MAX_VALUES numbers.

    Where clips may have several labels, those without one are clips of no class, as in probes.
    """
    if not predictions.names_in_common or _too_many(predictions):
        return None
    classes, several = len(predictions.model_labels), predictions.multi_label
    number = {name: i for i, name in enumerate(predictions.model_labels)}
    known = [number.get(name) for name in predictions.label_names]
    scores: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    right = clips = labelled = left_out = 0
    for group in predictions.row_groups(["labels", "probabilities"]):
        values, counts = _probabilities(predictions, group["probabilities"])
        firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        means = np.add.reduceat(values, firsts, axis=0) / np.array(counts)[:, None] if len(values) else values
        for mean, labels in zip(means, group["labels"].to_pylist(), strict=True):
            ids = [known[i] for i in labels or []]
            if None in ids or (not several and len(ids) != 1):
                left_out += 1
                continue
            clips, labelled = clips + 1, labelled + bool(ids)
            if several:
                scores.append(mean.astype(np.float32))
                targets.append(np.isin(np.arange(classes), ids))
            else:
                right += int(mean.argmax()) == ids[0]
    if not labelled:
        return None
    if not several:
        return Agreement("accuracy", right / clips, clips, left_out)
    precision = multi_label_scores(np.stack(scores), np.stack(targets)).mean_average_precision
    return Agreement("mAP", precision, clips, left_out)


def unmeasured(predictions: Predictions) -> str:
    """Why `agreement` found nothing, of clips that may have labels."""
    if not predictions.names_in_common:
        return "none of them is a label of the model"
    if _too_many(predictions):
        return f"mAP of so many clips and labels takes more than {MAX_VALUES >> 28} GiB"
    return "no clip has one of the model's, and no others"


def _too_many(predictions: Predictions) -> bool:
    return predictions.multi_label and predictions.num_clips * len(predictions.model_labels) > MAX_VALUES
