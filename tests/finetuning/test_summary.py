"""The table of classes of fine-tuned models."""

import json

import numpy as np
import pytest

from ajepa.finetuning.summary import class_table
from ajepa.shards.labels import Labels

NAMES = ("broken", "high", "low")


def make_labels(clips):
    values = np.array([label for clip in clips for label in clip])
    return Labels(NAMES, values, np.cumsum([0, *map(len, clips)]))


def test_a_class_without_clips_has_no_recall():
    logits = np.array([[0, 2, 1], [0, 1, 2], [0, 1, 2.0]])
    table = class_table(make_labels([[1], [1], [2]]), NAMES, [(np.arange(3), logits)])
    assert table == [
        {"class": "broken", "clips": 0, "recall": None, "precision": None},
        {"class": "high", "clips": 2, "recall": 0.5, "precision": 1.0},
        {"class": "low", "clips": 1, "recall": 1.0, "precision": 0.5},
    ]


def test_nor_an_average_precision_and_the_table_is_json():
    logits = np.array([[0, 2, 1], [0, 1, 2], [0, 1, 3.0]])
    table = class_table(make_labels([[1], [1, 2], [2]]), NAMES, [(np.arange(3), logits)])
    assert table[0] == {"class": "broken", "clips": 0, "average precision": None}
    assert table[2] == {"class": "low", "clips": 2, "average precision": pytest.approx(1)}
    json.loads(json.dumps(table, allow_nan=False))
