"""The encoders that come with the package: by name, offline, and only as they were made."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.training_state import save_run

import ajepa
from ajepa.errors import UserError
from ajepa.inference import shipped
from ajepa.inference.pretrained import known_facts
from ajepa.inference.shipped import DIGESTS, FOLDER, encoder_path, require_intact, shipped_name

NAMES = list(DIGESTS)
LARGEST = 4_000_000  # bytes of all files of one
# The first numbers of the embedding of `chirp`.
EXPECTED = {"nano": [0.00224, 0.01085, 0.04245, -0.01339, -0.00150, -0.00296, -0.02819, -0.03815]}


def chirp() -> np.ndarray:
    """Two seconds at 16 kHz, from 100 Hz to 4 kHz."""
    t = np.arange(32_000) / 16_000
    return (0.3 * np.sin(2 * np.pi * (100 * t + 975 * t**2))).astype(np.float32)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The folder of a copy that is taken in place of the package's."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    return Path(shutil.copytree(FOLDER / "nano", tmp_path / "weights/nano"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_the_embedding_that_it_always_gave(name, elsewhere):
    encoder = ajepa.load_encoder(name)
    vector = encoder(chirp(), 16_000)
    assert vector.shape == (1, encoder.width) and vector.dtype == torch.float32
    torch.testing.assert_close(vector[0, :8], torch.tensor(EXPECTED[name]), atol=1e-4, rtol=0)


def test_a_shipped_encoder_tells_sounds_apart():
    encoder = ajepa.load_encoder("nano")
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    a, b, c = (encoder(wave, 16_000) for wave in (chirp(), noise, np.roll(noise, 8000)))
    assert (b - c).norm() < 0.5 * (a - b).norm()


@pytest.mark.parametrize("name", NAMES)
def test_its_folder_is_small_and_says_whose_recordings_it_learned_from(name):
    files = {path.name: path.stat().st_size for path in (FOLDER / name).iterdir()}
    assert set(files) == {"encoder.json", "encoder.safetensors", "README.md", "ATTRIBUTION.md"}
    assert sum(files.values()) <= LARGEST
    attribution = (FOLDER / name / "ATTRIBUTION.md").read_text()
    licence = r"(?:CC BY 3\.0|CC0 1\.0|CC Sampling\+ 1\.0)"
    clips = re.findall(rf"^\| [1-5]-\d+-[A-Z] \|.*\| {licence} \|$", attribution, re.MULTILINE)
    assert len(clips) == known_facts(name, ajepa.load_encoder(name))["dataset"]["clips"] == 400
    assert "10.1145/2733373.2806390" in attribution and "creativecommons.org/licenses/by/3.0" in attribution


@pytest.mark.parametrize("name", NAMES)
def test_its_card_has_a_licence_its_scores_and_its_digest(name):
    text = (FOLDER / name / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert front["license"] == "apache-2.0" and "ATTRIBUTION.md" in text
    assert f"| digest of the encoder | {ajepa.load_encoder(name).about['digest']} |" in text
    assert "linear probe on esc10" in text and "knn probe on fsdd" in text and "| log-mel statistics |" in text


def test_weights_are_stored_in_half_and_loaded_in_float32():
    encoder = ajepa.load_encoder("nano")
    stored = 2 * sum(value.numel() for value in encoder.encoder.state_dict().values())
    assert stored < (FOLDER / "nano/encoder.safetensors").stat().st_size < 1.01 * stored
    assert {value.dtype for value in encoder.encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("file", shipped.FILES)
def test_a_damaged_file_is_refused(copied, file):
    data = bytearray((copied / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / file).write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"'nano' that comes with ajepa is damaged: .* install ajepa again"):
        require_intact("nano")
    with pytest.raises(UserError, match="install ajepa again"):
        ajepa.load_encoder("nano")


def test_a_missing_file_is_refused(copied):
    (copied / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"is damaged \(.*No such file.*\): install ajepa again"):
        ajepa.load_encoder("nano")


def test_a_path_that_exists_is_taken_first_and_that_is_said(elsewhere, small_dataset, caplog):
    save_run(elsewhere / "nano", small_dataset, 1)
    assert ajepa.load_encoder("nano").width == 32
    assert "not the encoder of that name that comes with ajepa" in caplog.text
    assert shipped_name(encoder_path("nano")) is None


def test_a_name_that_there_is_not_is_answered_with_those_there_are(elsewhere):
    with pytest.raises(UserError, match=r"no encoder 'nona' comes with ajepa \(there is: nano\)"):
        ajepa.load_encoder("nona")
    with pytest.raises(UserError, match=r"the run or checkpoint '.*runs/nano' does not exist"):
        ajepa.load_encoder("runs/nano")


def test_the_other_branch_is_refused():
    with pytest.raises(UserError, match="holds the context encoder, not the target"):  # what EAT evaluates
        ajepa.load_encoder("nano", "target")


def test_an_export_of_a_shipped_encoder_keeps_where_it_comes_from(elsewhere):
    described = json.loads((FOLDER / "nano/encoder.json").read_text())
    about = ajepa.load_encoder("nano").about
    assert {name: about[name] for name in ("objective", "branch", "step")} == {
        name: described[name] for name in ("objective", "branch", "step")
    }
    assert shipped_name(about["source"]) == "nano"
