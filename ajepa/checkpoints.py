"""Checkpoints: safetensors and a manifest with digests that is checked on loading. Nothing is ever unpickled.

A checkpoint folder holds model.safetensors (AJEPA's state dict), optimizer.safetensors (AdamW's moments by parameter
name) and, written last, checkpoint.json: step, cursor of the reader, loss scale, config, statistics, front end,
dataset hash, and the digests of the other files. There is no random state to keep: every draw is a function of
(seed, sample).
"""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.config import Config, FrontEndConfig, from_dict
from ajepa.errors import UserError

FORMAT_VERSION = 2
MANIFEST, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.safetensors"
CHECKPOINTS = "checkpoints"  # folder of a run
BEST = "best.json"  # of a run: the checkpoint with the best score

logger = logging.getLogger(__name__)
said: set[str] = set()  # warnings given: a run looks at a torn checkpoint several times, one line is enough


@dataclass(frozen=True)
class CheckpointInfo:
    """checkpoint.json of a checkpoint."""

    path: str
    step: int
    total_steps: int
    config: Config
    front_end: FrontEndConfig
    statistics: Statistics
    dataset_hash: str
    scaler: dict[str, Any]  # of the loss, with fp16
    reader: dict[str, Any]  # cursor of the data stream


@dataclass(frozen=True)
class Snapshot:
    """A state copied to host memory, so that training goes on while it is written."""

    step: int
    files: dict[str, dict[str, torch.Tensor]]
    manifest: dict[str, Any]


def describe(front_end: FrontEndConfig, statistics: Statistics) -> dict[str, Any]:
    """Front end and normalisation as JSON values."""
    return {"front_end": dataclasses.asdict(front_end), "statistics": statistics.to_dict()}


def write_checkpoint(folder: str, shot: Snapshot) -> None:
    """Write a checkpoint into a folder; the manifest comes last, so a torn folder is recognised. What another
    attempt left there is written over."""
    storage.delete(storage.join(folder, MANIFEST))
    storage.make_folder(folder)
    digests = {}
    for name, tensors in shot.files.items():
        data = safetensors.torch.save(tensors)
        digests[name] = digest(data)
        with storage.atomic_output(storage.join(folder, name)) as stream:
            stream.write(data)
    storage.write_text(storage.join(folder, MANIFEST), json.dumps(shot.manifest | {"digests": digests}, indent=1))


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
        return CheckpointInfo(
            path=folder,
            step=manifest["step"],
            total_steps=manifest["total_steps"],
            config=Config.from_dict(manifest["config"]),
            front_end=from_dict(FrontEndConfig, manifest["front_end"]),
            statistics=Statistics.from_dict(manifest["statistics"]),
            dataset_hash=manifest["dataset_hash"],
            scaler=manifest["scaler"],
            reader=manifest["reader"],
        )
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{where!r} is damaged ({error!r}); use an earlier checkpoint") from error


def read_weights(folder: str) -> dict[str, torch.Tensor]:
    """The verified weights of a checkpoint, by the names of AJEPA's state dict."""
    return read_tensors(folder, MODEL)


def checkpoint_path(run: str, step: int) -> str:
    """Where a run keeps the checkpoint of a step."""
    return storage.join(run, CHECKPOINTS, f"step-{step:08d}")


def find_checkpoint(run: str, needed: tuple[str, ...] = (MODEL, OPTIMIZER)) -> str | None:
    """The newest checkpoint of a run folder whose needed files are intact; None where the run has none yet.

    A torn checkpoint is passed over with a warning. One without a manifest was still being written when the run was
    killed: it never counted.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    folders = [storage.join(run, CHECKPOINTS, name) for name in _steps(run)]
    for folder in reversed(folders):
        try:
            for file in needed:
                _verified(folder, file)
        except UserError as error:
            if str(error) not in said:
                logger.warning("passed over: %s", error)
                said.add(str(error))
            continue
        return folder
    finished = sum(_is_finished(folder) for folder in folders)
    if finished:
        raise UserError(f"{run!r} is no trained run: none of its {finished} checkpoints is intact")
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


def note_best(run: str, step: int, score: float, later_wins: bool = False) -> None:
    """Remember a written checkpoint as the best one if its score is higher than the best so far, or as high where
    the later one wins."""
    best = read_best(run)
    if best is None or score > best["score"] or (later_wins and score == best["score"]):
        storage.write_text(storage.join(run, BEST), json.dumps({"step": step, "score": score}))


def read_best(run: str) -> dict[str, Any] | None:
    """{"step", "score"} of the best checkpoint, or None where no score was ever measured."""
    where = storage.join(run, BEST)
    return json.loads(storage.read_text(where)) if storage.kind(where) == "file" else None


def prune_checkpoints(run: str, keep: int, step: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `step`, the one just written, and the best one.

    Later ones and ones without a manifest were passed over when the run resumed: they must not push out intact ones.
    """
    best = read_best(run)
    folders = [storage.join(run, CHECKPOINTS, name) for name in _steps(run)]
    intact = [folder for folder in folders if folder <= checkpoint_path(run, step) and _is_finished(folder)]
    kept = [*intact[-keep:], *([checkpoint_path(run, best["step"])] if best else [])]
    for folder in folders:
        if folder not in kept:
            storage.delete(folder)


def _steps(run: str) -> list[str]:
    """Names of the checkpoint folders of a run, oldest first."""
    where = storage.join(run, CHECKPOINTS)
    names = storage.list_files(where) if storage.kind(where) == "folder" else []
    return sorted({name.partition("/")[0] for name, _ in names if "/" in name})


def _is_finished(folder: str) -> bool:
    """Whether the manifest, written last, is there."""
    return storage.kind(storage.join(folder, MANIFEST)) == "file"


def read_tensors(folder: str, name: str) -> dict[str, torch.Tensor]:
    """The verified tensors of a file of a checkpoint, by name."""
    data = _verified(folder, name)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{folder!r} is not an intact checkpoint: {name} is damaged ({error})") from error


def digest(data: bytes) -> str:
    """BLAKE2b-128 in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _verified(folder: str, name: str) -> bytes:
    reading = MANIFEST
    try:
        expected = json.loads(storage.read_text(storage.join(folder, MANIFEST)))["digests"][name]
        reading = name
        with storage.open_input(storage.join(folder, name)) as stream:
            data = stream.read()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder!r} is not an intact checkpoint: {reading} cannot be read ({error})") from error
    if digest(data) != expected:
        raise UserError(f"{folder!r} is not an intact checkpoint: {name} does not match its digest")
    return data
