"""HEAR 2021: the public validator itself, and what it does not look at."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training_state import save_run

import ajepa.hear
from ajepa.errors import UserError

ROOT = Path(__file__).parents[1]
PATIENCE = 1200  # seconds until the validator counts as hung: TensorFlow alone takes a minute on a slow machine


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset):
    path = tmp_path_factory.mktemp("hear")
    save_run(path, small_dataset, 1)
    return str(path)


@pytest.fixture(scope="module")
def model(run):
    return ajepa.hear.load_model(run)


@pytest.mark.evaluation
@pytest.mark.process
@pytest.mark.skipif(
    importlib.util.find_spec("hearvalidator") is None,
    reason="the tools of the extra eval are not installed: make test-eval",
)
def test_the_public_validator_passes(run):
    command = [sys.executable, "-W", "error:We suggest", "-m", "hearvalidator.validate", "ajepa.hear", "-m", run]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Interval between timestamps is 40.0ms" in done.stdout
    assert done.stdout.endswith("Looks good!\n")


def test_timestamps_are_the_middles_of_what_they_see(model):
    embeddings, timestamps = ajepa.hear.get_timestamp_embeddings(torch.rand(2, 16_000) - 0.5, model)
    assert timestamps.dtype == embeddings.dtype == torch.float32
    assert timestamps.shape == embeddings.shape[:2] and torch.equal(timestamps[0], timestamps[1])
    assert timestamps[0, 0] == 75 and 1000 - 80 <= timestamps[0, -1] <= 1000


def test_timestamps_follow_an_event(model):
    quiet = 1e-3 * torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    loud = quiet.clone()
    loud[:, 9_600:9_760] += 0.5  # a click at 600 ms
    (a, timestamps), (b, _) = (ajepa.hear.get_timestamp_embeddings(x, model) for x in (quiet, loud))
    change = (a - b).norm(dim=-1)[0]
    near = (timestamps[0] - 605).abs() < 80
    assert change[near].min() > change[~near].max()


def test_a_batch_equals_its_sounds(model):
    audio = torch.rand(3, 40_000) - 0.5
    scenes = ajepa.hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (3, model.scene_embedding_size)
    for i in range(3):
        torch.testing.assert_close(ajepa.hear.get_scene_embeddings(audio[i : i + 1], model)[0], scenes[i])


def test_an_encoder_is_named_and_none_taken_by_itself():
    with pytest.raises(UserError, match="give the path of a run or an export, or nano, which comes with ajepa"):
        ajepa.hear.load_model()


def test_an_encoder_that_comes_with_the_package_is_taken_by_its_name():
    model = ajepa.hear.load_model("nano")
    assert ajepa.hear.get_scene_embeddings(torch.rand(1, 16_000) - 0.5, model).shape == (1, 384)
