"""Features of a dataset, and the table that sets an encoder beside its baselines."""

import dataclasses

import numpy as np
import pytest
from helpers.training_state import MODEL

from ajepa.choices import POOLINGS
from ajepa.errors import UserError
from ajepa.evaluation.comparison import (
    MEL,
    PRETRAINED,
    RANDOM,
    Row,
    Run,
    Source,
    compare,
    comparison_table,
    gain_over_random,
)  # fmt: skip
from ajepa.evaluation.features import encoder_features, mel_statistics
from ajepa.evaluation.heads import Features
from ajepa.evaluation.metrics import accuracy_replicates, resamples
from ajepa.evaluation.splits import make_splits
from ajepa.inference.pretrained import random_encoder
from ajepa.shards.labels import read_labels
from ajepa.shards.schema import decode_log_mels


@pytest.fixture(scope="module")
def encoder(small_dataset):
    return random_encoder(MODEL, 0, small_dataset.front_end, small_dataset.statistics)


def test_mel_statistics_are_those_of_the_valid_frames(small_dataset):
    features = mel_statistics(small_dataset)["mean+std"]
    table = small_dataset.read_columns(["log_mel", "num_frames"])
    log_mels = decode_log_mels(table["log_mel"], 128, small_dataset.front_end.clip_frames).astype(np.float64)
    for i, valid in enumerate(table["num_frames"].to_pylist()):
        own = log_mels[i, :, :valid]
        np.testing.assert_allclose(features[i], np.concatenate([own.mean(axis=1), own.std(axis=1)]), atol=1e-5)


def test_features_come_in_storage_order_and_do_not_depend_on_the_batch(encoder, small_dataset, monkeypatch):
    features = encoder_features(encoder, small_dataset)
    assert features["mean"].shape == (small_dataset.num_clips, 32)
    assert features["mean+std"].shape == (small_dataset.num_clips, 64)
    assert features["bands mean+std"].shape == (small_dataset.num_clips, 8 * 64)
    monkeypatch.setattr("ajepa.evaluation.features.BATCH", 1)
    again = encoder_features(encoder, small_dataset)
    np.testing.assert_allclose(features["mean+std"], again["mean+std"], atol=1e-4)


def test_another_front_end_is_refused(encoder, small_dataset):
    other = dataclasses.replace(small_dataset, front_end=dataclasses.replace(small_dataset.front_end, hop_length=320))
    with pytest.raises(UserError, match=r"hop_length=160.*have 320"):
        encoder_features(encoder, other)


def test_the_comparison_has_a_row_a_kind_and_pooling(encoder, small_dataset):
    targets = read_labels(small_dataset)
    splits = {seed: make_splits(small_dataset, targets, seed) for seed in (0, 1)}

    def features():
        return {name: Features(values) for name, values in encoder_features(encoder, small_dataset).items()}

    def mel():
        return {name: Features(values) for name, values in mel_statistics(small_dataset).items()}

    sources = [
        Source(PRETRAINED, "run", features, (0, 1)),
        Source(RANDOM, "seed 0", features, (0,)),
        Source(RANDOM, "seed 1", features, (1,)),
        Source(MEL, MEL, mel, (0, 1)),
    ]
    rows = list(compare(sources, targets, splits, "knn", replicates=50))
    assert [(r.features, r.pooling) for r in rows] == [
        *((name, pooling) for name in (PRETRAINED, RANDOM) for pooling in POOLINGS),
        (MEL, "mean"),
        (MEL, "mean+std"),
    ]
    for row in rows:
        assert row.interval[0] <= row.mean <= row.interval[1] and len(row.fold_scores) == 5
    assert f"{rows[0].mean:.3f}" in comparison_table(rows)


def row(kind, right, pooling="mean"):
    """A row whose clips are right in these places."""
    weights = resamples(len(right), 500)
    run = Run("run", 0, float(np.mean(right)), [float(np.mean(right))], 0.5, {"accuracy": 0.5}, ())
    return Row(kind, pooling, 8, "accuracy", [run], accuracy_replicates(right.astype(np.float32), weights), None)


def test_what_training_gained_is_paired_by_clip():
    """15 more of 200 clips are clear where the others are the same, and not where they are others."""
    base = np.random.default_rng(0).random(200) < 0.6
    better, other = base.copy(), np.random.default_rng(1).permutation(base)
    better[np.flatnonzero(~base)[:15]] = True
    other[np.flatnonzero(~other)[:15]] = True
    rows = [row(RANDOM, base), row(RANDOM, ~base, "mean+std")]
    said = [gain_over_random(rows, row(PRETRAINED, right)) for right in (better, other, base, base & other)]
    assert said[0].startswith("+0.075 to random init (95% interval over clips +0.0") and said[0].endswith(": better")
    assert said[1].startswith("+0.075") and said[1].endswith(": not clearly different")
    assert said[2].endswith("+0.000 to +0.000): not clearly different") and said[3].endswith(": worse")
    assert gain_over_random(rows[1:], row(PRETRAINED, better)) == ""
