"""Nearest neighbours on frozen features: no training, one number of neighbours to choose."""

import numpy as np
import torch

from ajepa.evaluation.linear import standardise

NEIGHBOURS = (1, 3, 5, 10, 20, 50)  # tried
TEMPERATURE = 0.07  # votes are weighted by exp(cosine / TEMPERATURE) (Wu et al., 2018)
ROWS = 256  # clips looked up at a time


def neighbour_scores(
    features: np.ndarray, targets: np.ndarray, queries: np.ndarray, counts: tuple[int, ...] = NEIGHBOURS
) -> dict[int, np.ndarray]:
    """Weighted mean of the labels of the most similar clips, for each number of them: {count: [m, C] in 0..1}.

    Features are standardised on the clips that are looked up; similar is a high cosine. Counts over n are n.

    Args:
        features: [n, D] with targets [n, C] bool.
        queries: [m, D].
    """
    mean, std = standardise(features)
    known, asked = (
        torch.nn.functional.normalize(torch.from_numpy(((part - mean) / std).astype(np.float32)))
        for part in (features, queries)
    )
    labels = torch.from_numpy(targets.astype(np.float32))
    most = min(max(counts), len(features))
    results: dict[int, list[np.ndarray]] = {count: [] for count in counts}
    for start in range(0, len(asked), ROWS):
        cosine, nearest = (asked[start : start + ROWS] @ known.T).topk(most, dim=1)
        weight = torch.exp((cosine - 1) / TEMPERATURE)
        for count in counts:
            share = weight[:, :count] / weight[:, :count].sum(dim=1, keepdim=True)
            results[count].append(torch.einsum("qk,qkc->qc", share, labels[nearest[:, :count]]).numpy())
    return {count: np.concatenate(parts) for count, parts in results.items()}
