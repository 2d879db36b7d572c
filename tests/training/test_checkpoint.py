"""Checkpoints: what is saved comes back, torn ones are passed over, and nothing is unpickled."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.training_state import make_inputs, make_state, save_run

from ajepa.checkpoints import find_checkpoint, latest_checkpoint, read_info, read_weights
from ajepa.errors import UserError
from ajepa.training.snapshot import restore
from ajepa.training.step import train_step


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory, small_dataset) -> Path:
    """A run with a checkpoint after each of three steps. Read only."""
    folder = tmp_path_factory.mktemp("three_steps")
    save_run(folder, small_dataset)
    return folder


@pytest.fixture
def run(three_steps, tmp_path) -> Path:
    """A copy of its own for each test."""
    return shutil.copytree(three_steps, tmp_path / "copy")


def test_a_restored_state_goes_on_bit_for_bit(tmp_path, small_dataset):
    state = save_run(tmp_path, small_dataset)
    again = make_state()
    restore(latest_checkpoint(str(tmp_path)), again)
    assert again.step == 3
    for s in (state, again):
        for step in range(3, 6):
            train_step(s, make_inputs(s, step))
    a, b = state.core.state_dict(), again.core.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_info_holds_config_and_statistics(tmp_path, small_dataset):
    state = save_run(tmp_path, small_dataset, 1)
    info = read_info(latest_checkpoint(str(tmp_path)))
    assert (info.step, info.config, info.front_end) == (1, state.config, small_dataset.front_end)
    assert (info.statistics.mean == small_dataset.statistics.mean).all()
    assert info.dataset_hash == small_dataset.content_hash


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_torn_checkpoint_is_passed_over(run, damage):
    newest = run / "checkpoints" / "step-00000003"
    weights = newest / "model.safetensors"
    data = weights.read_bytes()
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "checkpoint.json").unlink()
    assert latest_checkpoint(str(run)).endswith("step-00000002")


def test_a_damaged_optimizer_is_refused(run):
    folder = latest_checkpoint(str(run))
    Path(folder, "optimizer.safetensors").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match="does not match its digest"):
        restore(folder, make_state())


def test_another_architecture_is_refused(three_steps):
    other = make_state()
    other.core.predictor.mask_token = torch.nn.Parameter(torch.zeros(8))
    with pytest.raises(UserError, match="mask_token"):
        restore(latest_checkpoint(str(three_steps)), other)


def test_a_torn_optimizer_matters_for_resuming_only(run, caplog):
    (run / "checkpoints" / "step-00000003" / "optimizer.safetensors").write_bytes(b"torn")
    assert latest_checkpoint(str(run)).endswith("3")
    assert find_checkpoint(str(run)).endswith("2")
    assert "optimizer.safetensors does not match its digest" in caplog.text


@pytest.mark.parametrize(
    ("make", "match"), [(None, "does not exist"), ("empty", "no checkpoint"), ("file", "is a file")]
)
def test_no_checkpoint_is_said_clearly(tmp_path, make, match):
    path = tmp_path / "run"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("x")
    with pytest.raises(UserError, match=match):
        latest_checkpoint(str(path))


def test_another_version_is_refused(run):
    manifest = Path(latest_checkpoint(str(run)), "checkpoint.json")
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 9'))
    with pytest.raises(UserError, match="format 9"):
        read_info(str(manifest.parent))


def test_weights_are_those_of_the_state(tmp_path, small_dataset):
    state = save_run(tmp_path, small_dataset, 1)
    weights = read_weights(latest_checkpoint(str(tmp_path)))
    assert all(torch.equal(weights[k], v) for k, v in state.core.state_dict().items())
