"""load_encoder(): a trained run or export in, embeddings out."""

import dataclasses
import json
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa import storage
from ajepa.audio.decode import resample
from ajepa.audio.logmel import LogMel
from ajepa.config import PATCH, Config, FrontEndConfig, ModelConfig, from_dict
from ajepa.errors import UserError
from ajepa.model.vit import Encoder, patchify
from ajepa.shards.statistics import Statistics
from ajepa.training.checkpoint import describe, digest, latest_checkpoint, read_info, read_weights
from ajepa.training.step import Normaliser, build_model

Branch = Literal["target", "context"]
EXPORT_JSON, EXPORT_WEIGHTS, EXPORT_VERSION = "encoder.json", "encoder.safetensors", 1


class AudioEncoder(nn.Module):
    """A frozen encoder with its front end and normalisation: waveform or log-mel to embeddings. It takes the encoder
    over: one that is being trained would stop to be (give it a copy).

    Longer input is cut into windows of the length the encoder was trained on. Patches that are
    mostly padding count nowhere.
    """

    def __init__(self, encoder: Encoder, front_end: FrontEndConfig, statistics: Statistics) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.front_end, self.log_mel = front_end, LogMel(front_end)
        self.normalise = Normaliser(statistics)

    @property
    def width(self) -> int:
        """Dimension D of the embeddings."""
        return self.encoder.config.width

    @torch.inference_mode()
    def clip_embeddings(self, waveform: Tensor | np.ndarray, sample_rate: int) -> Tensor:
        """Mean over patches: [B, samples] or [samples] -> [B, D].

        Raises:
            ValueError: not one- or two-dimensional, empty, shorter than one window, or not finite.
        """
        array = np.asarray(waveform, np.float32)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or not array.size:
            raise ValueError(f"a waveform has the shape [samples] or [B, samples], not {list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError("the waveform holds NaN or infinite samples")
        rows = [resample(row, sample_rate, self.front_end.sample_rate) for row in array]
        if len(rows[0]) < self.front_end.win_length:
            raise ValueError(f"the waveform is shorter than one window of {self.front_end.win_length} samples")
        device = next(self.encoder.parameters()).device
        log_mel = self.log_mel(torch.from_numpy(np.stack(rows)).to(device))
        return self.pooled(log_mel, torch.full((len(log_mel),), log_mel.shape[-1]))["mean"]

    @torch.inference_mode()
    def pooled(self, log_mel: Tensor, num_frames: Tensor) -> dict[str, Tensor]:
        """Pool the patch embeddings of each clip over its valid frames.

        Args:
            log_mel: [B, n_mels, T] raw log-mels (any float type), padded to a common T.
            num_frames: [B] valid frames, at least 1.

        Returns:
            "mean" [B, D] and "mean+std" [B, 2 D] over all patches; "bands mean+std" [B, rows * 2 D] over time
            alone, each row of patches (a frequency band) by itself: its mean, then its standard deviation.
        """
        tokens, valid = self.patch_embeddings(log_mel, num_frames)  # [B, N, D], [B, N]
        rows, columns = self.encoder.config.grid
        grid = (len(tokens), -1, rows, columns)  # windows in succession
        tokens, weight = tokens.reshape(*grid, self.width), valid.reshape(*grid, 1).float()
        mean, std = _moments(tokens, weight, (1, 2, 3))
        band_mean, band_std = _moments(tokens, weight, (1, 3))  # [B, rows, D] each
        return {
            "mean": mean,
            "mean+std": torch.cat([mean, std], dim=1),
            "bands mean+std": torch.cat([band_mean, band_std], dim=2).flatten(1),
        }

    @torch.inference_mode()
    def patch_embeddings(self, log_mel: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Every patch: embeddings [B, N, D] window after window, and [B, N] true where a patch holds sound."""
        device = next(self.encoder.parameters()).device
        rows, columns = self.encoder.config.grid
        window = columns * PATCH
        # A column counts when at least half of its frames are valid; every clip has one.
        valid_columns = ((num_frames + PATCH // 2) // PATCH).clamp_min(1).to(device)
        windows = -(-int(valid_columns.max()) // columns)
        log_mel = log_mel[..., : windows * window].to(device)
        num_frames = num_frames.to(device)
        normalised = self.normalise(log_mel)
        frame = torch.arange(normalised.shape[-1], device=device)
        # Padding becomes the mean (0): what it was filled with is arbitrary.
        normalised = normalised * (frame < num_frames[:, None])[:, None]
        normalised = F.pad(normalised, (0, windows * window - normalised.shape[-1]))
        batch, bins, _ = normalised.shape
        parts = normalised.reshape(batch, bins, windows, window).transpose(1, 2).reshape(-1, bins, window)
        tokens = self.encoder(patchify(parts))
        assert isinstance(tokens, Tensor)
        valid = torch.arange(windows * columns, device=device) < valid_columns[:, None]
        valid = valid.reshape(batch, windows, 1, columns).expand(-1, -1, rows, -1)
        return tokens.reshape(batch, windows * rows * columns, -1).float(), valid.reshape(batch, -1)


def _moments(tokens: Tensor, weight: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over the axes `over`."""
    count = weight.sum(dim=over, keepdim=True)
    mean = (tokens * weight).sum(dim=over, keepdim=True) / count
    variance = ((tokens - mean).square() * weight).sum(dim=over, keepdim=True) / count
    return mean.squeeze(over), variance.sqrt().squeeze(over)


def load_encoder(path: str, branch: Branch | None = None) -> AudioEncoder:
    """The encoder of a run folder, a checkpoint or an export, in eval mode on the CPU.

    Args:
        path: local path or URI.
        branch: "target", the EMA target encoder, which sec. 8 finds slightly better, or "context"; by default the
            target encoder, or the one that was exported.

    Raises:
        UserError: nothing there, no intact checkpoint, one of another version, or an export of the other branch.
    """
    path = storage.absolute(str(path))
    exported = storage.kind(storage.join(path, EXPORT_JSON)) == "file"
    folder = path if exported else latest_checkpoint(path)
    model, front_end, statistics, weights = _read_export(path, branch) if exported else _read_run(folder, branch)
    encoder = Encoder(model)
    try:
        encoder.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder!r} holds other weights than its config says: {error}") from error
    return AudioEncoder(encoder, front_end, statistics)


def export_encoder(source: str, output: str, branch: Branch = "target") -> dict[str, Any]:
    """Write the encoder of a run or checkpoint into a small folder of its own: encoder.safetensors and encoder.json
    (architecture, front end, statistics, where it comes from, digest), which is written last and returned.

    Raises:
        UserError: no intact checkpoint at `source`, or something already at `output`.
    """
    folder = latest_checkpoint(storage.absolute(str(source)))
    output = storage.absolute(str(output))
    if storage.kind(output) == "file" or (storage.kind(output) == "folder" and storage.list_files(output)):
        raise UserError(f"the output {output!r} exists: choose another, or delete it first")
    info = read_info(folder)
    _, front_end, statistics, weights = _read_run(folder, branch)
    data = safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
    about = {
        "format_version": EXPORT_VERSION,
        "branch": branch,
        "step": info.step,
        "dataset_hash": info.dataset_hash,
        "model": dataclasses.asdict(info.config.model),
        **describe(front_end, statistics),
        "digest": digest(data),
    }
    storage.make_folder(output)
    with storage.atomic_output(storage.join(output, EXPORT_WEIGHTS)) as stream:
        stream.write(data)
    storage.write_text(storage.join(output, EXPORT_JSON), json.dumps(about, indent=1))
    return about


_Parts = tuple[ModelConfig, FrontEndConfig, Statistics, dict[str, Tensor]]


def _read_run(folder: str, branch: Branch | None) -> _Parts:
    info = read_info(folder)
    prefix = f"{branch or 'target'}_encoder."
    weights = {k.removeprefix(prefix): v for k, v in read_weights(folder).items() if k.startswith(prefix)}
    return info.config.model, info.front_end, info.statistics, weights


def _read_export(folder: str, branch: Branch | None) -> _Parts:
    where = storage.join(folder, EXPORT_JSON)
    try:
        about = json.loads(storage.read_text(where))
        if about["format_version"] != EXPORT_VERSION:
            raise UserError(f"{folder!r} has export format {about['format_version']}, not {EXPORT_VERSION}")
        if branch is not None and branch != about["branch"]:
            raise UserError(f"{folder!r} holds the {about['branch']} encoder, not the {branch} encoder")
        with storage.open_input(storage.join(folder, EXPORT_WEIGHTS)) as stream:
            data = stream.read()
        if digest(data) != about["digest"]:
            raise UserError(f"{folder!r} is damaged: {EXPORT_WEIGHTS} does not match its digest; export it again")
        model, front_end = from_dict(ModelConfig, about["model"]), from_dict(FrontEndConfig, about["front_end"])
        return model, front_end, Statistics.from_dict(about["statistics"]), safetensors.torch.load(data)
    except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder!r} is damaged ({error!r}): export it again") from error


def random_encoder(config: Config, front_end: FrontEndConfig, statistics: Statistics) -> AudioEncoder:
    """The same architecture at its initialisation from config.train.seed: the baseline of every probe."""
    return AudioEncoder(build_model(config).target_encoder, front_end, statistics)
