"""Fine-tuned models in use: waveforms in, probabilities by label out; what is no such model is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.classifiers import save_classifier
from helpers.training_state import save_run

import ajepa
from ajepa.errors import UserError
from ajepa.finetuning.classifier import read_classifier
from ajepa.inference.pretrained import load_encoder

NAMES = ("bird", "engine", "rain", "siren", "wind")


def noise(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(small_dataset, tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model") / "model", small_dataset, NAMES)


@pytest.fixture(scope="module")
def classifier(folder):
    return ajepa.load_classifier(folder)


@pytest.fixture(scope="module")
def several(small_dataset, tmp_path_factory):
    """A model of clips with several labels."""
    return ajepa.load_classifier(save_classifier(tmp_path_factory.mktemp("several"), small_dataset, NAMES, True))


def test_probabilities_are_a_softmax_of_the_logits(classifier):
    model, names = read_classifier(classifier.audio.about["source"])
    wave = noise(1.5)
    found = classifier(wave, 16_000)
    log_mel, frames = model.audio.log_mels(wave, 16_000)
    torch.testing.assert_close(found, model(log_mel, frames.numpy()).softmax(dim=1))
    assert tuple(names) == classifier.label_names == NAMES and found.sum().item() == pytest.approx(1)


def test_with_several_labels_they_are_sigmoids(classifier, several):
    wave = noise(1.5)
    logits = several.model(*(x if i == 0 else x.numpy() for i, x in enumerate(several.audio.log_mels(wave, 16_000))))
    torch.testing.assert_close(several(wave, 16_000), logits.sigmoid())
    assert several.digest != classifier.digest


def test_any_rate_and_unequal_lengths(classifier):
    waves = [noise(0.3), noise(2.0, 1)]
    together = classifier(waves, 16_000)
    for i, wave in enumerate(waves):
        torch.testing.assert_close(together[i], classifier(wave, 16_000)[0], rtol=0, atol=1e-5)
    assert classifier(noise(1, rate=44_100), 44_100).shape == (1, len(NAMES))


def test_the_top_labels_come_best_first(classifier):
    probabilities = torch.tensor([[0.1, 0.5, 0.05, 0.3, 0.05], [0.9, 0.1, 0.0, 0.0, 0.0]])
    best = classifier.top(probabilities, 2)
    assert [[name for name, _ in row] for row in best] == [["engine", "siren"], ["bird", "engine"]]
    assert best[0][0].probability == pytest.approx(0.5)
    assert [len(row) for row in classifier.top(probabilities, 99, threshold=0.2)] == [2, 1]


def test_windows_are_classified_as_clips_of_their_own(classifier):
    """At their frames: the log-mel of a window is cut from that of the recording."""
    wave = noise(2.0)
    found = classifier.windows(wave, 16_000, hop_s=0.32)
    log_mel, num_frames = classifier.audio.log_mels(wave, 16_000)
    last = (int(num_frames[0]) - 64) / 100
    assert found.time_s[0].tolist() == pytest.approx([0, 0.32, 0.64, 0.96, 1.28, last])
    assert last == pytest.approx(1.37) and found.valid.all()
    for time, probabilities in zip(found.time_s[0].tolist(), found.probabilities[0], strict=True):
        start = round(time * 100)
        alone = classifier.probabilities(log_mel[..., start : start + 64], torch.tensor([64]))
        torch.testing.assert_close(probabilities, alone[0], rtol=0, atol=1e-5)


def test_windows_of_unequal_clips_are_marked(classifier):
    waves = [noise(0.2), noise(2.0)]
    found = classifier.windows(waves, 16_000)
    assert found.valid.sum(dim=1).tolist() == [1, 4] and not found.probabilities[0, 1:].any()
    torch.testing.assert_close(found.probabilities[0, 0], classifier(waves[0], 16_000)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.probabilities[1], classifier.windows(waves[1], 16_000).probabilities[0])


@pytest.mark.parametrize("hop", [0.0, -1.0, 0.1, 0.7, float("nan")])
def test_a_hop_that_makes_no_sense_is_refused(classifier, hop):
    with pytest.raises(ValueError, match=r"windows are 0\.64 s long; give from 0\.16"):
        classifier.windows(noise(1), 16_000, hop_s=hop)


def test_an_encoder_is_no_classifier(small_dataset, folder, tmp_path):
    save_run(tmp_path / "run", small_dataset, 1)
    (tmp_path / "run/run.json").write_text("{}")
    ajepa.export_encoder(str(tmp_path / "run"), str(tmp_path / "export"))
    checkpoint = next((tmp_path / "run/checkpoints").iterdir())
    kinds = {tmp_path / "export": "an export", tmp_path / "run": "a pretraining run", checkpoint: "a checkpoint"}
    for path, kind in kinds.items():
        with pytest.raises(UserError, match=rf"holds an encoder \({kind}\), which knows no labels: fine-tune it"):
            ajepa.load_classifier(path)
    assert load_encoder(folder).about["step"] == 3  # a classifier is an encoder


def test_what_is_no_model_says_what_makes_one(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"is no fine-tuned model: finetune\.py writes one"):
            ajepa.load_classifier(path)
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(UserError, match=r"without a finished model: run the same finetune\.py command again"):
        ajepa.load_classifier(tmp_path)


def test_the_output_of_a_fine_tuning_is_taken_where_it_holds_one_model(small_dataset, tmp_path):
    save_classifier(tmp_path / "seed-0/model", small_dataset, NAMES)
    assert ajepa.load_classifier(tmp_path).audio.about["source"] == str(tmp_path / "seed-0/model")
    save_classifier(tmp_path / "seed-1/model", small_dataset, NAMES)
    with pytest.raises(UserError, match="holds 2 fine-tuned models: name one, like"):
        ajepa.load_classifier(tmp_path)


def test_a_fine_tuning_is_no_encoder(small_dataset, tmp_path):
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(UserError, match="is the output of a fine-tuning, not an encoder: it has no finished model"):
        load_encoder(str(tmp_path))
    model = save_classifier(tmp_path / "seed-0/model", small_dataset, NAMES)
    with pytest.raises(UserError, match=f"not an encoder: name a model of it, like {model}"):
        load_encoder(str(tmp_path))


def test_an_earlier_model_is_told_whether_clips_have_several_labels(small_dataset, tmp_path):
    path = save_classifier(tmp_path / "out/seed-0/model", small_dataset, NAMES, None)
    with pytest.raises(UserError, match=r"does not say .*multi_label=True or False"):
        ajepa.load_classifier(path)
    assert ajepa.load_classifier(path, multi_label=True).multi_label
    Path(tmp_path, "out/finetune.json").write_text(json.dumps({"metric": "accuracy"}))
    assert not ajepa.load_classifier(path).multi_label


@pytest.mark.parametrize("file", ["head.json", "head.safetensors", "encoder.safetensors"])
def test_a_damaged_model_is_refused(small_dataset, tmp_path, file):
    path = save_classifier(tmp_path / "model", small_dataset, NAMES)
    Path(path, file).write_bytes(b"{")
    with pytest.raises(UserError, match="is damaged"):
        ajepa.load_classifier(path)
