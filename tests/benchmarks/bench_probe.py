"""A linear probe of the size of AudioSet: 20,000 clips, 768 features, 527 classes. Run with `make bench`."""

import os
import resource
import time

import numpy as np
import pytest
import torch
from benchmarks.common import say

from ajepa.evaluation.metrics import multi_label_scores
from ajepa.evaluation.probe import choose_linear
from ajepa.training.flops import gemm_rate

pytestmark = pytest.mark.timeout(3_600)
CLIPS, WIDTH, CLASSES, TEST = 20_000, 768, 527, 2_000


def features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clips of about two labels each, whose classes leave their mark in correlated features."""
    rng = np.random.default_rng(seed)
    share = 0.05 / (1 + np.arange(CLASSES)) ** 0.6
    targets = rng.random((CLIPS + TEST, CLASSES)) < share / share.sum() * 2
    targets[np.arange(len(targets)), rng.integers(0, CLASSES, len(targets))] = True
    marks = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    noise = rng.normal(size=(len(targets), 100)).astype(np.float32) @ rng.normal(size=(100, WIDTH)).astype(np.float32)
    return targets.astype(np.float32) @ marks + 0.5 * noise + rng.normal(size=noise.shape).astype(np.float32), targets


def test_probe_of_audioset_s_size():
    """Seconds with the whole grid, against the product features x weights, and memory over what was there."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    values, targets = features()
    validation, train = np.arange(CLIPS // 10), np.arange(CLIPS // 10, CLIPS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    floor = 2 * CLIPS * WIDTH * CLASSES / gemm_rate(torch.device("cpu"), torch.float32, 2048)
    start = time.perf_counter()
    model, reached = choose_linear(values, targets, True, train, validation, np.arange(CLIPS))
    took = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    torch.set_num_threads(1)
    score = multi_label_scores(model.scores(values[CLIPS:]), targets[CLIPS:]).mean_average_precision
    chance = float(targets[CLIPS:].mean())
    note = f"{took / floor:.0f} products of features and weights; L2 {model.strength}"
    say("probe of 20,000 x 768, 527 classes, grid included: seconds", [took], note)
    say("memory over the features", [more], f"GB; mAP {score:.3f} (validation {reached:.3f}, chance {chance:.3f})")
    assert score > 2 * chance
