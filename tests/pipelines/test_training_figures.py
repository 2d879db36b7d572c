"""The pictures are written, with something in them, whatever a history or a dataset lacks."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest
from helpers.runs import tiny_config

from ajepa.config import FrontEndConfig
from ajepa.objectives.registry import build_objective
from pipelines.reports.training_figures import (
    choose_crops,
    draw_masks,
    draw_predictions,
    draw_training,
)

pytestmark = pytest.mark.xdist_group("figures")  # Matplotlib is imported once

HISTORY = [
    {
        "step": 20 * i, "loss": 0.5 / (i + 1), "effective_rank": 20.0 + i, "patch_rank": 80.0, "target_std": 0.7,
        "prediction_std": 0.6, "clip_cosine": 0.4, "patch_cosine": 0.8, "grad_norm": 0.1, "lr": 1e-3, "ema": 0.99,
        "online_linear": 0.6 + i / 100, "online_linear_random": 0.6, "online_linear_mel": 0.7,
    }
    for i in range(10)
]  # fmt: skip


def check(path):
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 400 and picture.shape[1] > 300
    colours = np.rint(255 * picture[..., :3]) @ [1, 256, 256**2]  # a number each: rows of three take seconds to sort
    assert len(np.unique(colours)) > 20


@pytest.mark.parametrize(
    "history",
    [
        HISTORY,
        [{k: v for k, v in h.items() if not k.startswith("online")} for h in HISTORY],
        [{"step": 0, "effective_rank": 20.0}],
        [{"step": 0, "effective_rank": float("nan"), "loss": float("nan")}],
        [h | {"ema": 0.0, "grad_norm": 0.0} for h in HISTORY],
        [],
    ],
)
def test_training(history, tmp_path):
    draw_training(history, 192, tmp_path / "new" / "training.png")
    check(tmp_path / "new" / "training.png")


def test_predictions(small_dataset, tmp_path):
    draw_predictions(build_objective(tiny_config()), small_dataset, tmp_path / "predictions.png")
    check(tmp_path / "predictions.png")


def test_masks(small_dataset, tmp_path):
    draw_masks(small_dataset, tiny_config(), tmp_path / "masks.png")
    check(tmp_path / "masks.png")


def test_one_silent_unlabelled_clip(tmp_path, build_dataset, write_wav):
    uri = write_wav(tmp_path / "one.wav", np.zeros(16_000))
    dataset = build_dataset(
        tmp_path / "shards", [{"clip_id": "one", "uri": uri}], shard_size=8, front_end=FrontEndConfig(clip_frames=128),
        label_names=[],
    )  # fmt: skip
    draw_predictions(build_objective(tiny_config()), dataset, tmp_path / "predictions.png")
    check(tmp_path / "predictions.png")


def test_crops_of_different_labels_come_first(small_dataset):
    batch, names = choose_crops(small_dataset, tiny_config(), 6)
    assert len(set(names[:4])) == 4 and len(names) == len(batch.rows) == 6
    assert batch.rows.tolist() == choose_crops(small_dataset, tiny_config(), 6)[0].rows.tolist()


def test_awkward_label_names(small_dataset, tmp_path):
    names = ("cost: $5 and $\\frac{", "a\nb", "鳥", "long " * 60)
    dataset = dataclasses.replace(small_dataset, label_names=names)
    draw_predictions(build_objective(tiny_config()), dataset, tmp_path / "predictions.png")
    check(tmp_path / "predictions.png")
