"""Frozen features of a dataset's clips: from an encoder, or the log-mel statistics every probe is compared with."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ajepa.choices import POOLINGS, Combine, Pooling
from ajepa.inference.encoder import AudioEncoder
from ajepa.model.pooling import valid_columns
from ajepa.shards.dataset import ShardDataset

BATCH = 32


def encoder_features(
    encoder: AudioEncoder,
    dataset: ShardDataset,
    layers: Sequence[int] | None = None,
    combine: Combine = "concat",
) -> dict[Pooling, np.ndarray]:
    """Pooled features by pooling, {"mean": [n, D], ...} as AudioEncoder.pooled gives them, in storage order.

    Args:
        layers, combine: see AudioEncoder.tokens; "stack" gives [n, L, D].

    Raises:
        UserError: the dataset was made with another front end than the encoder was trained on.
        ValueError: a layer that is not there.
    """
    dataset.require_front_end(encoder.front_end)
    parts: dict[Pooling, list[np.ndarray]] = {pooling: [] for pooling in POOLINGS}
    for log_mels, num_frames in _batches(dataset):
        with torch.inference_mode():
            pooled = encoder.pooled(torch.tensor(log_mels), torch.tensor(num_frames), layers=layers, combine=combine)
        for pooling in POOLINGS:
            parts[pooling].append(pooled[pooling].cpu().numpy())
    return {pooling: np.concatenate(rows) for pooling, rows in parts.items()}


def patch_columns(dataset: ShardDataset) -> np.ndarray:
    """Valid columns of patches [n] of every clip."""
    frames = dataset.read_columns(["num_frames"])["num_frames"].to_numpy()
    return valid_columns(torch.tensor(frames)).numpy()


def patch_features(
    encoder: AudioEncoder, dataset: ShardDataset, layers: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """Patch embeddings [b, N, D] float16, batch after batch in storage order; N those of the longest clip.
    What is not valid is zero.

    Raises:
        UserError, ValueError: as encoder_features.
    """
    dataset.require_front_end(encoder.front_end)
    columns = int(patch_columns(dataset).max())
    for log_mels, num_frames in _batches(dataset):
        with torch.inference_mode():
            tokens, _ = encoder.tokens(torch.tensor(log_mels), torch.tensor(num_frames), layers=layers)
        padded = F.pad(tokens, (0, 0, 0, columns - tokens.shape[2]))  # [b, R, C, D]
        yield padded.flatten(1, 2).half().cpu().numpy()


def valid_patches(encoder: AudioEncoder, dataset: ShardDataset) -> np.ndarray:
    """[n, N] true where a patch holds sound."""
    columns = patch_columns(dataset)
    valid = np.arange(columns.max()) < columns[:, None]
    return np.broadcast_to(valid[:, None], (len(valid), encoder.rows, valid.shape[1])).reshape(len(valid), -1)


def mel_statistics(dataset: ShardDataset) -> dict[Pooling, np.ndarray]:
    """Mean [n, 128], and mean and standard deviation [n, 256], of each mel bin over a clip's valid frames. A mel bin
    is a band already: there is no third pooling."""
    table = dataset.read_columns(["num_frames", "bin_sum", "bin_sumsq"])
    frames = table["num_frames"].to_numpy()[:, None]
    total, squares = (np.stack(table[name].to_numpy()) for name in ("bin_sum", "bin_sumsq"))
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 0))
    return {"mean": mean, "mean+std": np.concatenate([mean, std], axis=1)}


def _batches(dataset: ShardDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for log_mels, num_frames in dataset.iter_log_mels():
        for start in range(0, len(log_mels), BATCH):
            yield log_mels[start : start + BATCH], num_frames[start : start + BATCH]
