"""Features of a dataset, and the table that sets an encoder beside its baselines."""

import dataclasses

import numpy as np
import pytest
from training.test_step import MODEL

from ajepa.config import Config, TrainConfig
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM, compare, markdown_table
from ajepa.evaluation.features import encoder_features, mel_statistics
from ajepa.model.pooling import POOLINGS
from ajepa.pretrained import random_encoder
from ajepa.shards.schema import decode_log_mels

CONFIG = Config(model=MODEL, train=TrainConfig())


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


def test_the_comparison_has_every_row(encoder, small_dataset):
    rows = compare(encoder, CONFIG, small_dataset, "knn", random_seeds=2)
    assert [(r.features, r.pooling) for r in rows] == [
        (name, pooling) for name in (PRETRAINED, RANDOM, MEL) for pooling in POOLINGS
    ]
    assert [len(r.seed_accuracy) for r in rows] == [1, 1, 1, 2, 2, 2, 1, 1, 1]
    table = markdown_table(rows)
    assert "random init (2 seeds)" in table and f"{rows[0].mean:.3f} ± {rows[0].std:.3f}" in table
