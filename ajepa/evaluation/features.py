"""Frozen features of a dataset's clips: from an encoder, or the log-mel statistics every probe is compared with."""

from collections.abc import Iterator

import numpy as np
import torch

from ajepa.encoder import AudioEncoder
from ajepa.model.pooling import POOLINGS
from ajepa.shards.dataset import ShardDataset

BATCH = 32


def encoder_features(encoder: AudioEncoder, dataset: ShardDataset) -> dict[str, np.ndarray]:
    """Pooled features by pooling, {"mean": [n, D], ...} as AudioEncoder.pooled gives them, in storage order.

    Raises:
        UserError: the dataset was made with another front end than the encoder was trained on.
    """
    dataset.require_front_end(encoder.front_end)
    parts: dict[str, list[np.ndarray]] = {pooling: [] for pooling in POOLINGS}
    for log_mels, num_frames in _batches(dataset):
        pooled = encoder.pooled(torch.tensor(log_mels), torch.tensor(num_frames))
        for pooling in POOLINGS:
            parts[pooling].append(pooled[pooling].cpu().numpy())
    return {pooling: np.concatenate(rows) for pooling, rows in parts.items()}


def mel_statistics(dataset: ShardDataset) -> dict[str, np.ndarray]:
    """Mean [n, 128], and mean and standard deviation [n, 256], of each mel bin over a clip's valid frames.

    A mel bin is a band already, so pooling by bands is the latter.
    """
    table = dataset.read_columns(["num_frames", "bin_sum", "bin_sumsq"])
    frames = table["num_frames"].to_numpy()[:, None]
    total, squares = (np.stack(table[name].to_numpy()) for name in ("bin_sum", "bin_sumsq"))
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 0))
    both = np.concatenate([mean, std], axis=1)
    return {"mean": mean, "mean+std": both, "bands mean+std": both}


def _batches(dataset: ShardDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for log_mels, num_frames in dataset.iter_log_mels():
        for start in range(0, len(log_mels), BATCH):
            yield log_mels[start : start + BATCH], num_frames[start : start + BATCH]
