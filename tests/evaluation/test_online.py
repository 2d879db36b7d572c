"""The online probe: which clips it takes, that no clip is predicted from its own fold, and when there is none."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from helpers.training_state import MODEL

from ajepa.config import Config, FrontEndConfig, TrainConfig
from ajepa.evaluation import online
from ajepa.evaluation.online import build_online_probe, choose_rows, knn_predictions, ridge_predictions
from ajepa.objectives.registry import build_objective

CONFIG = Config(model=MODEL, train=TrainConfig())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def probe(small_dataset):
    return build_online_probe(small_dataset, CONFIG)[0]


def features(n=100, signal=3.0):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    values = rng.normal(size=(n, 12))
    values[np.arange(n), labels] += signal
    return (values - values.mean(axis=0)) / values.std(axis=0), labels, rng.permutation(n) % 5


@pytest.fixture
def labelled(tmp_path, build_dataset, write_wav):
    """labelled([[0], [1], ...]) makes a dataset of short clips with these labels and no folds, 50 clips a shard."""

    def build(labels):
        rng = np.random.default_rng(0)
        clips = [
            {"clip_id": str(i), "uri": write_wav(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 2_000)), "labels": own}
            for i, own in enumerate(labels)
        ]
        front_end = FrontEndConfig(clip_frames=16)
        names = list("abcdefgh")
        return build_dataset(tmp_path / "shards", clips, shard_size=50, front_end=front_end, label_names=names)

    return build


def test_scores_are_accuracies_and_start_at_the_random_baseline(probe):
    scores, baselines = probe.score(build_objective(CONFIG).target_encoder), probe.baselines(CPU)
    assert set(scores) == {"online_linear", "online_knn"}
    assert set(baselines) == {f"{name}_{kind}" for name in scores for kind in ("random", "mel")}
    assert all(0 <= v <= 1 for v in [*scores.values(), *baselines.values()])
    assert scores == {name: baselines[f"{name}_random"] for name in scores}
    assert baselines["online_linear_mel"] > 0.9  # labels are pitches


def test_an_encoder_in_training_is_refused(probe):
    with pytest.raises(ValueError, match="frozen"):
        probe.score(build_objective(CONFIG).context_encoder)


def test_clips_are_those_of_the_dataset(probe, small_dataset):
    log_mels = np.concatenate([rows for rows, _ in small_dataset.iter_log_mels()])
    table = small_dataset.read_columns(["labels", "fold", "num_frames"])
    frames = online.MAX_WINDOWS * MODEL.crop_frames
    assert np.array_equal(probe.log_mels, log_mels[:, :, :frames])
    assert probe.labels.tolist() == [row[0] for row in table["labels"].to_pylist()]
    assert probe.folds.tolist() == table["fold"].to_pylist()
    assert probe.num_frames.tolist() == [min(f, frames) for f in table["num_frames"].to_pylist()]


def test_fewer_clips_are_balanced_and_depend_on_the_seed_alone(labelled):
    dataset = labelled([[i * i % 7 % 3] for i in range(210)])  # 30, 60 and 120 clips of a class
    labels = np.array([i * i % 7 % 3 for i in range(210)])
    rows = choose_rows(dataset, labels, np.arange(3), 0, 60)
    assert np.bincount(labels[rows]).tolist() == [20, 20, 20]
    assert np.array_equal(rows, choose_rows(dataset, labels, np.arange(3), 0, 60))
    assert any(not np.array_equal(rows, choose_rows(dataset, labels, np.arange(3), s, 60)) for s in (1, 2, 3))
    assert len(choose_rows(dataset, labels, np.array([0, 2]), 0, 1000)) == np.isin(labels, [0, 2]).sum()


def test_drawn_folds_hold_every_class(labelled):
    probe, what = build_online_probe(labelled([[i % 3] for i in range(40)] + [[]] * 5), CONFIG)
    assert len(probe.labels) == 40 and what.startswith("online probe: 40 clips of 3 classes")
    assert set(zip(probe.folds.tolist(), probe.labels.tolist(), strict=True)) == set(product(range(5), range(3)))


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([[0, 1], [1], [0]], "several labels"),
        ([[]] * 4, "two classes"),
        ([[0]] * 12, "two classes"),
        ([[0]] * 12 + [[1]] * 4, "5 labelled clips"),
    ],
)
def test_what_cannot_be_probed_is_said(labelled, labels, reason):
    probe, what = build_online_probe(labelled(labels), CONFIG)
    assert probe is None and what.startswith("no online probe") and reason in what


def test_memory_is_bounded(small_dataset, monkeypatch):
    monkeypatch.setattr(online, "MAX_BYTES", 2 * 128 * online.MAX_WINDOWS * MODEL.crop_frames * 12)
    assert len(build_online_probe(small_dataset, CONFIG)[0].labels) == 12


def test_only_the_common_classes_take_part_where_there_are_many(small_dataset):
    probe, _ = build_online_probe(small_dataset, CONFIG, max_clips=20)
    assert len(np.unique(probe.labels)) == 2 and len(probe.labels) == 20


def test_ridge_is_that_of_a_fit_to_the_other_folds():
    values, labels, folds = features(n=400, signal=1.2)
    kernel = values @ values.T
    size = np.trace(kernel) / len(kernel)
    expected = np.empty_like(labels)
    for fold in range(5):
        train, test = folds != fold, folds == fold
        inner = (kernel + size)[np.ix_(train, train)] + online.RIDGE * size * np.eye(train.sum())
        dual = np.linalg.solve(inner, np.eye(4)[labels[train]])
        expected[test] = ((kernel + size)[np.ix_(test, train)] @ dual).argmax(axis=1)
    assert np.array_equal(ridge_predictions(values, labels, folds), expected)
    assert 0.4 < (expected == labels).mean() < 0.95


@pytest.mark.parametrize("predict", [ridge_predictions, knn_predictions])
def test_separable_features_score_high_and_noise_scores_chance(predict):
    values, labels, folds = features(n=400)
    assert (predict(values, labels, folds) == labels).mean() > 0.8
    noise, labels, folds = features(n=400, signal=0.0)
    assert (predict(noise, labels, folds) == labels).mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("predict", [ridge_predictions, knn_predictions])
def test_a_clip_is_not_predicted_from_its_own_fold(predict):
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(100, 200)), 2, axis=0)  # twins, and nothing but the twin tells the label
    labels, folds = np.repeat(rng.integers(0, 4, 100), 2), np.repeat(rng.permutation(100) % 5, 2)
    assert (predict(values, labels, folds) == labels).mean() < 0.4
    assert (predict(values, labels, np.arange(200) % 5) == labels).mean() > 0.9


def test_label_ids_need_not_be_consecutive():
    values, labels, folds = features()
    for predict in (ridge_predictions, knn_predictions):
        assert np.array_equal(predict(values, labels * 7 + 3, folds), predict(values, labels, folds) * 7 + 3)


def test_the_precision_is_that_of_the_training_step(probe):
    encoder = build_objective(CONFIG).target_encoder
    narrow = dataclasses.replace(probe, config=Config(model=MODEL, train=TrainConfig(precision="bf16")))
    wide = dataclasses.replace(probe, config=Config(model=MODEL, train=TrainConfig(precision="fp32")))
    a, b = (p._features(online.AudioEncoder(encoder, p.front_end, p.statistics)) for p in (narrow, wide))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05)
