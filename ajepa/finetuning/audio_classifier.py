"""AudioClassifier: a fine-tuned model with its label names, waveform or log-mel in, probabilities out.

Shape legend: B clips, C classes, W windows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.audio.waveforms import Waveforms
from ajepa.checkpoints import digest
from ajepa.choices import Precision
from ajepa.config import PATCH
from ajepa.documents import read_document
from ajepa.errors import UserError
from ajepa.finetuning.classifier import AGAIN, HEAD_JSON, read_classifier, read_multi_label, require_classifier
from ajepa.finetuning.model import Classifier
from ajepa.inference.encoder import AudioEncoder
from ajepa.storage import join

THRESHOLD = 0.5  # probability from which a label counts as predicted, where clips may have several


class LabelProbability(NamedTuple):
    """A label and how probable it is."""

    label: str
    probability: float


class WindowProbabilities(NamedTuple):
    """What is heard when."""

    probabilities: Tensor  # [B, W, C], zero where not valid
    time_s: Tensor  # [B, W] seconds from the clip's beginning to that of the window
    valid: Tensor  # [B, W] false behind the last window of a clip


class AudioClassifier(nn.Module):
    """A fine-tuned encoder with its head. What `ajepa.load_classifier` returns is frozen.

    Waveforms and errors are those of `AudioEncoder`. A clip of any length gets one prediction, from the pooled
    patches of all of it, which is what fine-tuning scores. In a long recording, `windows` tells what is heard when:
    each window of `window_s` seconds is classified as a clip of its own.

    Args:
        multi_label: whether a clip may have several labels: probabilities are then sigmoids, else a softmax.
        digest: of everything that predictions depend on.
    """

    def __init__(self, model: Classifier, label_names: Sequence[str], multi_label: bool, digest: str = "") -> None:
        super().__init__()
        self.model, self.label_names, self.multi_label, self.digest = model, tuple(label_names), multi_label, digest

    @property
    def audio(self) -> AudioEncoder:
        """The encoder, with front end and statistics."""
        return self.model.audio

    @property
    def window_frames(self) -> int:
        """Frames of a window, those that the encoder was trained on."""
        return self.audio.encoder.config.grid[1] * PATCH

    @property
    def window_s(self) -> float:
        """The same in seconds."""
        return self.window_frames / self.audio.front_end.frame_rate

    def forward(self, waveform: Waveforms, sample_rate: int, lengths: Sequence[int] | None = None) -> Tensor:
        """Probabilities [B, C], in the order of `label_names`.

        Args:
            sample_rate: of the waveform, in Hz.
            lengths: [B] valid samples of a padded batch.
        """
        return self.probabilities(*self.audio.log_mels(waveform, sample_rate, lengths))

    def probabilities(self, log_mel: Tensor, num_frames: Tensor) -> Tensor:
        """[B, n_mels, T] raw log-mels of [B] valid frames -> probabilities [B, C] float32."""
        logits = self.model(log_mel, num_frames.numpy())
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def windows(
        self, waveform: Waveforms, sample_rate: int, *, hop_s: float | None = None, lengths: Sequence[int] | None = None
    ) -> WindowProbabilities:
        """Probabilities of windows, see `window_starts`.

        Args:
            hop_s: seconds between the beginnings of windows; by default their length, `window_s`.

        Raises:
            ValueError: a hop that makes no sense, see `hop_frames`.
        """
        hop, rate = self.hop_frames(hop_s), self.audio.front_end.frame_rate
        found, starts = [], []
        at_once = self.audio.windows_at_once(self.audio.encoder.config.grid[1])
        log_mels, num_frames = self.audio.log_mels(waveform, sample_rate, lengths)
        for log_mel, frames in zip(log_mels, num_frames.tolist(), strict=True):
            starts.append(self.window_starts(frames, hop))
            length = min(frames, self.window_frames)
            parts = [starts[-1][i : i + at_once] for i in range(0, len(starts[-1]), at_once)]
            cut = (torch.stack([log_mel[:, s : s + length] for s in part]) for part in parts)
            found.append(torch.cat([self.probabilities(p, torch.full((len(p),), length)) for p in cut]))
        most = max(map(len, starts))
        times = torch.tensor([[*s, *[0] * (most - len(s))] for s in starts]) / rate
        valid = torch.arange(most) < torch.tensor([len(s) for s in starts])[:, None]
        padded = torch.stack([F.pad(p, (0, 0, 0, most - len(p))) for p in found])
        return WindowProbabilities(padded, times.to(padded.device), valid.to(padded.device))

    def hop_frames(self, hop_s: float | None) -> int:
        """Frames between windows.

        Raises:
            ValueError: below a column of patches, or above a window, so that sound would be left out.
        """
        if hop_s is None:
            return self.window_frames
        rate = self.audio.front_end.frame_rate
        if not PATCH / rate <= hop_s <= self.window_s:
            raise ValueError(
                f"a hop of {hop_s:g} s: windows are {self.window_s:g} s long; give from {PATCH / rate:g} (a column of "
                f"patches) to {self.window_s:g}, beyond which sound would be left out"
            )
        return round(hop_s * rate)

    def window_starts(self, num_frames: int, hop: int) -> list[int]:
        """First frame of each window over a clip: a hop apart, the last one flush with the clip's end. A clip that is
        no longer than a window is one."""
        last = max(0, num_frames - self.window_frames)
        return [*range(0, last, hop), last]

    def top(self, probabilities: Tensor, k: int = 1, threshold: float = 0.0) -> list[list[LabelProbability]]:
        """The k most probable labels of each of [B, C], best first, of those that reach the threshold."""
        k = min(k, len(self.label_names))
        best = probabilities.topk(k, dim=-1)
        return [
            [LabelProbability(self.label_names[i], p) for i, p in zip(labels, values, strict=True) if p >= threshold]
            for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def load_classifier(
    path: str,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    multi_label: bool | None = None,
) -> AudioClassifier:
    """A fine-tuned model of finetune.py, frozen and in eval mode.

    Args:
        path: its folder, or a fine-tuning's output with one model; a local path or URI.
        precision: see `load_encoder`.
        multi_label: whether clips may have several labels, for models of earlier versions, which do not say so.

    Raises:
        UserError: no fine-tuned model there (but an encoder), several, a damaged one, one that does not say whether
            clips may have several labels, or no GPU where one is asked for.
    """
    folder = require_classifier(str(path))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r}: torch finds no GPU here")
    model, names = read_classifier(folder, precision)
    known = read_multi_label(folder)
    if known is None:
        known = multi_label
    if known is None:
        raise UserError(
            f"{path!r} does not say whether clips may have several labels: {AGAIN}, or give "
            "load_classifier(..., multi_label=True or False)"
        )
    head = read_document(join(folder, HEAD_JSON), AGAIN)["digest"]
    whole = digest(f"{model.audio.about['digest']} {head} {model.pooling} {known} {names}".encode())
    return AudioClassifier(model, names, known, whole).to(device).eval()
