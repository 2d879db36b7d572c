"""Folders for transformers, and what ajepa makes of some waveforms, to compare with."""

from pathlib import Path

import numpy as np
import torch

from ajepa.audio.statistics import Statistics
from ajepa.choices import Pooling
from ajepa.config import FrontEndConfig, ModelConfig
from ajepa.finetuning.classifier import write_model
from ajepa.finetuning.handing_on import read_finetuned
from ajepa.finetuning.model import Classifier
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import random_encoder
from ajepa.inference.transformers_folder import write_transformers
from helpers.training_state import MODEL

SECONDS = (0.01, 0.1, 0.5, 1.28, 1.3, 3.37, 10.24, 65.0)
LABELS = ("cat", "dog", "rain")


def make_encoder(model: ModelConfig = MODEL, front_end: FrontEndConfig | None = None) -> AudioEncoder:
    """An encoder at its random initialisation that says where it comes from."""
    statistics = Statistics(np.linspace(-6, -3, model.n_mels), np.linspace(2, 3, model.n_mels), 9)
    audio = random_encoder(model, 0, front_end or FrontEndConfig(), statistics)
    audio.about |= {"objective": "jepa", "branch": "target", "step": 3, "dataset_hash": "d16e57"}
    return audio


def make_waveforms() -> list[np.ndarray]:
    """Tones in noise of SECONDS, 16 kHz."""
    generator, made = np.random.default_rng(0), []
    for i, seconds in enumerate(SECONDS):
        samples = np.arange(round(seconds * 16_000))
        tone = 0.3 * np.sin(0.05 * (i + 1) * samples)
        made.append((tone + generator.normal(0, 0.1, len(samples))).astype(np.float32))
    return made


def make_classifier(folder: Path, pooling: Pooling = "mean", multi_label: bool | None = False) -> Classifier:
    """A fine-tuned model whose head is drawn, written into a folder."""
    model = Classifier(make_encoder(), len(LABELS), pooling)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    write_model(str(folder), model, LABELS, {"finetuned_on": "f1e7", "epoch": 2, "seed": 0, "fold": 1}, multi_label)
    return model


def write_classifier(finetuned: Path, output: Path) -> None:
    """What export.py writes of a fine-tuned model."""
    audio, head, known = read_finetuned(str(finetuned))
    write_transformers(str(output), audio, known, head)


def expected_values(audio: AudioEncoder, classifier: Classifier) -> dict[str, np.ndarray]:
    """Waveforms, and what ajepa makes of each and of all together."""
    waveforms = make_waveforms()
    found: dict[str, np.ndarray] = {"ten": waveforms[-1][:160_000]}
    for i, waveform in enumerate(waveforms):
        found[f"waveform-{i}"] = waveform
        found[f"clip-{i}"] = audio(waveform, 16_000).numpy()
        found[f"frames-{i}"] = audio.frame_embeddings(waveform, 16_000).embeddings.numpy()
    found["clips"] = audio(waveforms, 16_000).numpy()
    found["frames"] = audio.frame_embeddings(waveforms, 16_000).embeddings.numpy()
    found["logits"] = native_logits(classifier, waveforms)
    return found


@torch.no_grad()
def native_logits(classifier: Classifier, waveforms: list[np.ndarray]) -> np.ndarray:
    log_mel, num_frames = classifier.audio.log_mels(waveforms, 16_000)
    return classifier.eval()(log_mel, num_frames.numpy()).numpy()
