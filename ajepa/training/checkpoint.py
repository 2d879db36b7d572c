"""Checkpoints: safetensors weights, optimizer state, and a manifest with digests that is checked on loading.

A checkpoint folder holds model.safetensors, optimizer.pt (plain tensors, read with weights_only) and
checkpoint.json: step, config, statistics, front end, dataset hash, and the digest of the other files.
"""

import dataclasses
import hashlib
import io
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ajepa import storage
from ajepa.config import Config, FrontEndConfig, from_dict
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.statistics import Statistics
from ajepa.training.step import TrainState

FORMAT_VERSION = 1
MANIFEST, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.pt"
CHECKPOINTS = "checkpoints"  # folder of a run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """checkpoint.json of a checkpoint whose files were verified."""

    path: str
    step: int
    total_steps: int
    config: Config
    front_end: FrontEndConfig
    statistics: Statistics
    dataset_hash: str


def save_checkpoint(folder: str, state: TrainState, dataset: ShardDataset) -> None:
    """Write a checkpoint into a new folder; the manifest comes last, so a torn folder is recognised."""
    storage.make_folder(folder)
    files = {
        MODEL: safetensors.torch.save({k: v.contiguous() for k, v in state.core.state_dict().items()}),
        OPTIMIZER: _to_bytes(state.optimizer.state_dict()),
    }
    for name, data in files.items():
        with storage.atomic_output(storage.join(folder, name)) as stream:
            stream.write(data)
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "total_steps": state.total_steps,
        "config": state.config.to_dict(),
        "front_end": dataclasses.asdict(dataset.front_end),
        "statistics": {
            "mean": dataset.statistics.mean.tolist(),
            "std": dataset.statistics.std.tolist(),
            "frames": dataset.statistics.frames,
        },
        "dataset_hash": dataset.content_hash,
        "digests": {name: _digest(data) for name, data in files.items()},
    }
    storage.write_text(storage.join(folder, MANIFEST), json.dumps(manifest, indent=1))


def read_info(folder: str) -> CheckpointInfo:
    """The manifest of a checkpoint, without reading the weights.

    Raises:
        UserError: no checkpoint there, torn, or written by another version.
    """
    where = storage.join(folder, MANIFEST)
    if storage.kind(where) != "file":
        raise UserError(f"{folder!r} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(storage.read_text(where))
        if manifest["format_version"] != FORMAT_VERSION:
            raise UserError(f"{folder!r} has checkpoint format {manifest['format_version']}, not {FORMAT_VERSION}")
        statistics = manifest["statistics"]
        return CheckpointInfo(
            path=folder,
            step=manifest["step"],
            total_steps=manifest["total_steps"],
            config=Config.from_dict(manifest["config"]),
            front_end=from_dict(FrontEndConfig, manifest["front_end"]),
            statistics=Statistics(np.array(statistics["mean"]), np.array(statistics["std"]), statistics["frames"]),
            dataset_hash=manifest["dataset_hash"],
        )
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{where!r} is damaged ({error!r}); use an earlier checkpoint") from error


def read_weights(folder: str) -> dict[str, torch.Tensor]:
    """The verified weights of a checkpoint, by the names of AJEPA's state dict."""
    return safetensors.torch.load(_verified(folder, MODEL))


def restore(folder: str, state: TrainState) -> None:
    """Load weights, optimizer and step into a state of the same config. Any mismatch of names or shapes raises."""
    info = read_info(folder)
    state.core.load_state_dict(read_weights(folder), strict=True)
    optimizer = torch.load(io.BytesIO(_verified(folder, OPTIMIZER)), weights_only=True, map_location=state.device)
    state.optimizer.load_state_dict(optimizer)
    state.step = info.step


def checkpoint_path(run: str, step: int) -> str:
    """Where a run keeps the checkpoint of a step."""
    return storage.join(run, CHECKPOINTS, f"step-{step:08d}")


def find_checkpoint(run: str, needed: tuple[str, ...] = (MODEL, OPTIMIZER)) -> str | None:
    """The newest checkpoint of a run folder whose needed files are intact; None where the run has none yet.

    A torn checkpoint is passed over with a warning.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    steps = _steps(run)
    for name in reversed(steps):
        folder = storage.join(run, CHECKPOINTS, name)
        try:
            for file in needed:
                _verified(folder, file)
        except UserError as error:
            logger.warning("passed over: %s", error)
            continue
        return folder
    if steps:
        raise UserError(f"{run!r} is no trained run: none of its {len(steps)} checkpoints is intact")
    return None


def latest_checkpoint(run: str) -> str:
    """The newest checkpoint with intact weights of a run folder, or the folder itself if it is a checkpoint.

    Raises:
        UserError: nothing there, or no intact checkpoint.
    """
    if storage.kind(run) == "missing":
        raise UserError(f"the run or checkpoint {run!r} does not exist")
    storage.require_folder(run, "the run or checkpoint")
    if storage.kind(storage.join(run, MANIFEST)) == "file":
        return run
    found = find_checkpoint(run, (MODEL,))
    if found is None:
        raise UserError(f"{run!r} is no trained run: it holds no checkpoint yet")
    return found


def prune_checkpoints(run: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for name in _steps(run)[:-keep]:
        storage.delete(storage.join(run, CHECKPOINTS, name))


def _steps(run: str) -> list[str]:
    """Names of the checkpoint folders of a run, oldest first."""
    where = storage.join(run, CHECKPOINTS)
    names = storage.list_files(where) if storage.kind(where) == "folder" else []
    return sorted({name.partition("/")[0] for name, _ in names if "/" in name})


def _to_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _verified(folder: str, name: str) -> bytes:
    try:
        expected = json.loads(storage.read_text(storage.join(folder, MANIFEST)))["digests"][name]
        with storage.open_input(storage.join(folder, name)) as stream:
            data = stream.read()
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{folder!r} is not an intact checkpoint: {name} cannot be read ({error})") from error
    if _digest(data) != expected:
        raise UserError(f"{folder!r} is not an intact checkpoint: {name} does not match its digest")
    return data
