"""Scores of clips by all workers together, and what they are worth."""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ajepa.evaluation.metrics import selection_score
from ajepa.shards.labels import Labels
from ajepa.shards.reader import ShardReader

CLIPS_AT_ONCE = 32


@torch.no_grad()
def outputs(
    function: Callable[[Tensor, np.ndarray], Tensor],
    reader: ShardReader,
    rows: np.ndarray,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """What a function of ([B, n_mels, T], [B] frames) says of the clips of ascending rows: [n, ...] float32 on the
    host, the same on every worker. Each of them computes its part of the rows."""
    parts = np.array_split(rows, world_size)
    computed = [
        function(torch.from_numpy(log_mel).to(device), frames)
        for log_mel, frames in reader.clips_of(parts[rank], CLIPS_AT_ONCE)
    ]
    if world_size == 1:
        return torch.cat(computed).cpu()
    width = torch.tensor(computed[0].shape[1] if computed else 0, device=device)
    dist.all_reduce(width, dist.ReduceOp.MAX)  # a worker may have no row
    result = torch.zeros(len(rows), int(width), device=device)
    if computed:
        first = sum(len(part) for part in parts[:rank])
        result[first : first + len(parts[rank])] = torch.cat(computed)
    dist.all_reduce(result)
    return result.cpu()


def score(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Accuracy, or mAP over the classes that occur. logits, targets: [n, C]."""
    return selection_score(logits, targets > 0, multi_label)[0]


def metric_name(labels: Labels) -> str:
    return "mAP" if labels.multi_label else "accuracy"
