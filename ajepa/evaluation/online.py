"""A progress light during pretraining: a quick probe of the encoder as it is, beside two baselines.

It is no result: few clips, one fixed regularisation, one pooling. Reported numbers come from probe.py.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch

from ajepa.audio.statistics import Statistics
from ajepa.config import Config, FrontEndConfig
from ajepa.evaluation.features import BATCH
from ajepa.evaluation.knn import neighbour_scores
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import random_encoder
from ajepa.model.precision import autocast_dtype
from ajepa.model.vit import Encoder
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.row_groups import RowGroups

MAX_CLIPS = 1000
MAX_WINDOWS = 2  # a clip is cut to so many windows of the encoder: what the probe costs is bounded by 2000 of them
MAX_BYTES = 512 << 20  # of log-mels kept; 1000 clips of 10 s are 262 MB
CLIPS_PER_CLASS = 10  # at least, on average: only the max_clips // 10 commonest classes take part
FOLDS = 5  # drawn where the dataset has none
RIDGE = 0.01  # L2 strength relative to the mean squared length of the standardised features
NEIGHBOURS = 10


@dataclass(frozen=True)
class OnlineProbe:
    """A fixed, class-balanced set of labelled clips in memory. Build it once with `build_online_probe`."""

    log_mels: np.ndarray  # [n, n_mels, frames] float16, raw
    num_frames: np.ndarray  # [n]
    labels: np.ndarray  # [n]
    folds: np.ndarray  # [n]
    front_end: FrontEndConfig
    statistics: Statistics
    config: Config

    def score(self, encoder: Encoder) -> dict[str, float]:
        """{"online_linear": accuracy, "online_knn": accuracy} of the mean-pooled features of a frozen encoder.

        One forward pass of all clips in the precision of the training step, on the encoder's device; the fits take
        0.2 s for 1000 clips of width 768. Leaves the encoder in eval mode, which for this model changes nothing.

        Raises:
            ValueError: the encoder is being trained; freezing it here would stop that.
        """
        if any(p.requires_grad for p in encoder.parameters()):
            raise ValueError("the online probe takes a frozen encoder: the target encoder, or a copy")
        device = next(encoder.parameters()).device
        return self._accuracy(self._features(AudioEncoder(encoder, self.front_end, self.statistics).to(device)))

    def baselines(self, device: torch.device) -> dict[str, float]:
        """What the scores are compared with, under the same pooling and the same fits.

        Returns:
            online_linear_random, online_knn_random of the run's own initialisation, and online_linear_mel,
            online_knn_mel of the mean log-mel spectrum.
        """
        random = self._features(
            random_encoder(self.config.model, self.config.train.seed, self.front_end, self.statistics).to(device)
        )
        pairs = zip(self.log_mels, self.num_frames, strict=True)
        mel = np.stack([log_mel[:, :valid].mean(axis=1, dtype=np.float64) for log_mel, valid in pairs])
        return {
            f"{name}_{kind}": value
            for kind, features in (("random", random), ("mel", mel))
            for name, value in self._accuracy(features).items()
        }

    def _features(self, encoder: AudioEncoder) -> np.ndarray:
        device = next(encoder.parameters()).device
        log_mels, frames = torch.from_numpy(self.log_mels), torch.from_numpy(self.num_frames)
        dtype = autocast_dtype(self.config.train, device)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            parts = [
                encoder.pooled(log_mels[i : i + BATCH], frames[i : i + BATCH], ("mean",))["mean"].cpu()
                for i in range(0, len(frames), BATCH)
            ]
        return torch.cat(parts).double().numpy()

    def _accuracy(self, features: np.ndarray) -> dict[str, float]:
        features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
        return {
            "online_linear": float((ridge_predictions(features, self.labels, self.folds) == self.labels).mean()),
            "online_knn": float((knn_predictions(features, self.labels, self.folds) == self.labels).mean()),
        }


def build_online_probe(
    dataset: ShardDataset, config: Config, max_clips: int = MAX_CLIPS
) -> tuple[OnlineProbe | None, str]:
    """Choose and read the clips of an online probe: (probe, what it is), or (None, why there is none).

    Clips are drawn as evenly over the classes as these allow, a pure function of config.train.seed; few row groups
    are read for them. The dataset's own folds are kept where it has them, and every clip is predicted from the other
    folds: a single test fold of a small dataset would be all noise (80 clips: +- 5 points, all 400: +- 2).
    Clips without a label are left out.

    Args:
        max_clips: fewer are taken where they would need more than MAX_BYTES of memory.
    """
    table = dataset.read_columns(["labels", "fold"])
    counts = pc.list_value_length(table["labels"]).to_numpy()
    if (counts > 1).any():
        return None, "no online probe: clips have several labels"
    labels = np.full(len(counts), -1)
    labels[counts == 1] = pc.list_flatten(table["labels"]).to_numpy()
    classes, sizes = np.unique(labels[labels >= 0], return_counts=True)
    frames = min(dataset.front_end.clip_frames, MAX_WINDOWS * config.model.crop_frames)
    max_clips = min(max_clips, MAX_BYTES // (2 * dataset.front_end.n_mels * frames))
    common = np.argsort(-sizes, kind="stable")[: max(2, max_clips // CLIPS_PER_CLASS)]
    common = common[sizes[common] >= FOLDS]
    if len(common) < 2:
        return None, f"no online probe: it needs two classes with {FOLDS} labelled clips each"
    rows = choose_rows(dataset, labels, classes[common], config.train.seed, max_clips)
    labels, folds = labels[rows], table["fold"].to_numpy()[rows]
    if (folds < 0).any() or len(np.unique(folds)) < 2:
        # A class's clips in storage order, cut in five: pieces of one recording mostly stay in one fold.
        folds = _turns(labels) * FOLDS // np.bincount(labels)[labels]
    log_mels, num_frames = _read(dataset, rows, frames)
    probe = OnlineProbe(log_mels, num_frames, labels, folds, dataset.front_end, dataset.statistics, config)
    return probe, f"online probe: {len(rows)} clips of {len(common)} classes, {log_mels.nbytes / 1e6:.0f} MB"


def choose_rows(dataset: ShardDataset, labels: np.ndarray, classes: np.ndarray, seed: int, count: int) -> np.ndarray:
    """At most `count` rows, ascending, as evenly over the classes as these allow.

    Row groups are taken in a drawn order and of every class its first clips in it, so that few groups have to be read.

    Args:
        labels: label id by row [num_clips]; rows with another one than `classes` are left out.
    """
    sizes = RowGroups(dataset).sizes
    place = np.random.default_rng(seed).permutation(len(sizes))
    rows = np.argsort(np.repeat(place, sizes), kind="stable")
    rows = rows[np.isin(labels[rows], classes)]
    return np.sort(rows[np.argsort(_turns(labels[rows]), kind="stable")[:count]])


def _turns(labels: np.ndarray) -> np.ndarray:
    """How many equal labels come before each one [n]."""
    order = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - np.repeat(first, sizes)
    return turns


def ridge_predictions(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Label of each row of standardised features [n, D] by ridge regression on the other folds.

    One n x n inverse serves all folds: with G = (K + r I)^-1, the residuals of a held-out fold B are
    (G_BB)^-1 (G y)_B exactly, the block form of ridge regression's leave-one-out identity.
    """
    classes, own = np.unique(labels, return_inverse=True)
    wanted = np.eye(len(classes))[own]
    kernel = features @ features.T
    strength = RIDGE * np.trace(kernel) / len(kernel)
    # A constant feature as long as the others together stands for the intercept.
    kernel += np.trace(kernel) / len(kernel)
    kernel[np.diag_indices_from(kernel)] += strength
    inverse = np.linalg.inv(kernel)
    dual = inverse @ wanted
    best = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        out = np.flatnonzero(folds == fold)
        predicted = wanted[out] - np.linalg.solve(inverse[np.ix_(out, out)], dual[out])
        best[out] = predicted.argmax(axis=1)
    return classes[best]


def knn_predictions(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Label of each row of features [n, D] by its NEIGHBOURS most similar rows of other folds."""
    classes, own = np.unique(labels, return_inverse=True)
    targets = np.eye(len(classes), dtype=bool)[own]
    best = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        out = folds == fold
        votes = neighbour_scores(features[~out], targets[~out], features[out], (NEIGHBOURS,))[NEIGHBOURS]
        best[out] = votes.argmax(axis=1)
    return classes[best]


def _read(dataset: ShardDataset, rows: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(log_mels [n, n_mels, frames] float16, num_frames [n]) of rows in ascending order, cut at `frames`."""
    source = RowGroups(dataset, verify=False)  # the training reader checks them
    log_mels = np.empty((len(rows), dataset.front_end.n_mels, frames), np.float16)
    num_frames = np.empty(len(rows), np.int64)
    groups = source.group_of(rows)
    for group in np.unique(groups).tolist():
        into, content = groups == group, source.read(group)
        inner = rows[into] - source.first_row[group]
        log_mels[into], num_frames[into] = content.log_mels[inner, :, :frames], content.num_frames[inner]
    return log_mels, np.minimum(num_frames, frames)
