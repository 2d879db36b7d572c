"""A tiny encoder for the small dataset."""

import pytest
from helpers.runs import SHORT_MODEL

from ajepa.inference.pretrained import random_encoder


@pytest.fixture(scope="session")
def audio(small_dataset):
    return random_encoder(SHORT_MODEL, 0, small_dataset.front_end, small_dataset.statistics)
