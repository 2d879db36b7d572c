"""Probes with something to learn before the linear layer: a weighted sum of layers, or attentive pooling of patches.
Trained together with it in minibatches; how long, and under which weight decay, is chosen on the validation part."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.evaluation.linear import safe_std
from ajepa.evaluation.metrics import is_saturated, selection_score
from ajepa.model.optimizer import AdamW
from ajepa.model.pooling import WeightedLayers

DECAYS = (0.3, 0.01)  # AdamW weight decays tried
LEARNING_RATE, BATCH = 3e-3, 64
CHECK_STEPS, CHECKS, PATIENCE = 20, 60, 8  # steps between validations at least, validations at most, without a gain
ROWS = 512  # clips converted or scored at a time


@dataclass(frozen=True)
class Features:
    """Frozen features of n clips: one vector each [n, D], one a layer [n, L, D], or one a patch [n, N, D] float16
    with `valid` [n, N]. Arrays may lie in a file (numpy.memmap)."""

    values: np.ndarray
    valid: np.ndarray | None = None

    @property
    def plain(self) -> bool:
        return self.values.ndim == 2

    @property
    def dimension(self) -> int:
        return self.values.shape[-1]


@dataclass(frozen=True)
class Setting:
    """What validation chose."""

    decay: float
    steps: int


class AttentivePool(nn.Module):
    """One learned query attends to a clip's valid patches: [B, N, D], [B, N] -> [B, D]. Starts near their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def forward(self, tokens: Tensor, valid: Tensor, unit: Tensor) -> Tensor:
        """unit [D]: the query is for tokens divided by it. (What is taken off all tokens alike changes no share.)"""
        scores = (tokens @ (self.query / unit)) / math.sqrt(tokens.shape[-1])
        share = scores.masked_fill(~valid, -torch.inf).softmax(dim=1)
        return (share[:, None] @ tokens)[:, 0]


class Head(nn.Module):
    """Standardised features of clips to logits [B, C]; the mean and deviation of the training part are part of it."""

    mean: Tensor
    unit: Tensor

    def __init__(self, mean: np.ndarray, std: np.ndarray, classes: int, attentive: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("unit", torch.from_numpy(std.astype(np.float32)))
        width = mean.shape[-1]
        self.pool = AttentivePool(width) if attentive else WeightedLayers(len(mean))
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, values: Tensor, valid: Tensor | None) -> Tensor:
        if valid is None:
            return self.linear(self.pool((values.float() - self.mean) / self.unit))
        pooled = self.pool(values.float(), valid, self.unit)
        return self.linear((pooled - self.mean) / self.unit)  # once a clip, which is the same as once a patch

    def scores(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """Logits [len(rows), C]."""
        self.eval()
        with torch.inference_mode():
            parts = [self(*self._batch(features, rows[i : i + ROWS])) for i in range(0, len(rows), ROWS)]
        return torch.cat(parts).cpu().numpy()

    def _batch(self, features: Features, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        device = self.linear.weight.device
        valid = None if features.valid is None else torch.from_numpy(features.valid[rows]).to(device)
        return torch.from_numpy(features.values[rows]).to(device), valid


def fit_decays(
    features: Features,
    targets: np.ndarray,
    multi_label: bool,
    train: np.ndarray,
    validation: np.ndarray,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Setting, Head]]:
    """For each weight decay the head as it was when it did best on the validation part, and when that was.

    Args:
        targets: [n, C] bool.
        train, validation: indices of clips.
        seed: of the initialisation and the order of the clips.
    """
    for decay in DECAYS:
        best, kept, checked = (-math.inf, -math.inf), None, 0
        for steps, head in _train(features, targets, multi_label, train, decay, seed, device):
            scores = head.scores(features, validation)
            reached = selection_score(scores, targets[validation], multi_label)
            if reached > best:
                best, checked, kept = reached, 0, (Setting(decay, steps), copy.deepcopy(head))
            else:
                checked += 1
            if checked == PATIENCE or is_saturated(reached):
                break
        assert kept is not None
        yield kept


def refit(
    features: Features,
    targets: np.ndarray,
    multi_label: bool,
    train: np.ndarray,
    setting: Setting,
    seed: int,
    device: torch.device | str = "cpu",
) -> Head:
    """A head trained as chosen on other clips, for as many steps."""
    runs = _train(features, targets, multi_label, train, setting.decay, seed, device, setting.steps)
    return next(head for steps, head in runs if steps >= setting.steps)


def _train(
    features: Features,
    targets: np.ndarray,
    multi_label: bool,
    train: np.ndarray,
    decay: float,
    seed: int,
    device: torch.device | str,
    steps: int | None = None,
) -> Iterator[tuple[int, Head]]:
    """(steps done, the head) every now and then, or after `steps`."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(*_moments(features, train), targets.shape[1], features.valid is not None).to(device)
    weights, others = [head.linear.weight], [p for n, p in head.named_parameters() if n != "linear.weight"]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = AdamW(groups, lr=LEARNING_RATE)
    wanted = torch.from_numpy(targets.astype(np.float32))
    every = steps or max(CHECK_STEPS, -(-len(train) // BATCH))
    order = np.empty(0, np.int64)
    for step in range(1, every * (1 if steps else CHECKS) + 1):
        if len(order) < min(BATCH, len(train)):
            order = np.concatenate([order, rng.permutation(train)])
        rows, order = np.sort(order[:BATCH]), order[BATCH:]
        head.train()
        logits = head(*head._batch(features, rows))
        _loss(logits, wanted[rows].to(device), multi_label).backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % every == 0:
            yield step, head


def _loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Mean over clips of the cross-entropy, or of the sum over classes of the binary one. [n, C] float each."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
    return F.cross_entropy(logits, targets)


def _moments(features: Features, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over clips [L, D], or over all valid patches [D], of the training part."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for i in range(0, len(rows), ROWS):
        part = rows[i : i + ROWS]
        values = features.values[part].astype(np.float64)
        if features.valid is not None:
            values = values[features.valid[part]]
        count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean, safe_std(mean, std)
