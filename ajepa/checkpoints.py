"""Checkpoints: safetensors and a manifest with digests that is checked on loading. Nothing is ever unpickled.

A checkpoint folder holds model.safetensors (the objective's state dict), optimizer.safetensors (AdamW's moments by
parameter name) and, written last, checkpoint.json: step, cursor of the reader, loss scale, config, statistics, front
end, dataset hash, and the digests of the other files. There is no random state to keep: every draw is a function of
(seed, sample).
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.config import Config, FrontEndConfig
from ajepa.config_json import from_dict
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError

FORMAT_VERSION = 2
MANIFEST, MODEL, OPTIMIZER = "checkpoint.json", "model.safetensors", "optimizer.safetensors"
CHECKPOINTS = "checkpoints"  # folder of a run
BEST = "best.json"  # of a run: the checkpoint with the best score
RUN_JSON = "run.json"  # what a run is; "finished" once its last checkpoint is written
FINETUNE_JSON = "finetune.json"  # of a fine-tuning's output: what it is; "finished" once everything is written

# Of safetensors: names of types, and their order in a file.
NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = list(NAMES)
MOST_HEADER = 100 << 20  # bytes, as the library has it
T = TypeVar("T")

logger = logging.getLogger(__name__)
warned_messages: set[str] = set()  # warnings given: a run looks at a torn checkpoint several times, one line is enough


class DamagedError(UserError):
    """A file of a checkpoint is missing or is not what was written."""


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
    report: dict[str, Any]  # of the step, where there was one; {} in checkpoints of earlier versions


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

    def write(name: str) -> str:
        with storage.atomic_output(storage.join(folder, name)) as stream:
            return write_tensors(stream, shot.files[name])

    with ThreadPoolExecutor(len(shot.files)) as threads:  # one connection to a store is slower than two
        digests = dict(zip(shot.files, threads.map(write, shot.files), strict=True))
    storage.write_text(storage.join(folder, MANIFEST), json.dumps(shot.manifest | {"digests": digests}, indent=1))


def read_info(folder: str) -> CheckpointInfo:
    """The manifest of a checkpoint, without reading the weights.

    Raises:
        UserError: no checkpoint there, torn, or written by another version.
    """
    where = storage.join(folder, MANIFEST)
    if storage.path_type(where) != "file":
        raise DamagedError(f"{folder!r} is not a checkpoint: it has no {MANIFEST}")
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
            report=manifest.get("report", {}),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{where!r} is damaged ({error!r}); use an earlier checkpoint") from error


def read_weights(folder: str) -> dict[str, torch.Tensor]:
    """The verified weights of a checkpoint, by the names of the objective's state dict."""
    return read_tensors(folder, MODEL)


def checkpoint_path(run: str, step: int) -> str:
    """Where a run keeps the checkpoint of a step."""
    return storage.join(run, CHECKPOINTS, f"step-{step:08d}")


def load_newest(run: str, load: Callable[[str], T]) -> T | None:
    """Load the newest intact checkpoint of a run folder; None where the run has none yet.

    A torn checkpoint is passed over with a warning. One without a manifest was still being written when the run was
    killed: it never counted.

    Args:
        load: loads from a folder, and raises DamagedError where a file it needs is torn.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    folders = [storage.join(run, CHECKPOINTS, name) for name in _steps(run)]
    for folder in reversed(folders):
        try:
            return load(folder)
        except DamagedError as error:
            if str(error) not in warned_messages:
                logger.warning("passed over: %s", error)
                warned_messages.add(str(error))
    finished = sum(_is_finished(folder) for folder in folders)
    if finished:
        raise UserError(f"{run!r} is no trained run: none of its {finished} checkpoints is intact")
    return None


def find_checkpoint(run: str, needed: tuple[str, ...] = (MODEL, OPTIMIZER)) -> str | None:
    """The newest checkpoint of a run folder whose needed files are intact, see `load_newest`; reads them whole."""

    def verify(folder: str) -> str:
        for file in needed:
            _verified(folder, file)
        return folder

    return load_newest(run, verify)


def newest_step(run: str) -> int:
    """The step of the newest checkpoint whose manifest can be read and whose files have the sizes they should, -1 for
    none; does not read them."""
    for name in reversed(_steps(run)):
        folder = storage.join(run, CHECKPOINTS, name)
        if not _is_finished(folder):
            continue
        with contextlib.suppress(OSError, ValueError):  # its manifest is torn
            json.loads(storage.read_text(storage.join(folder, MANIFEST)))
            if all(_has_its_size(storage.join(folder, file)) for file in (MODEL, OPTIMIZER)):
                return int(name.rpartition("-")[2])
    return -1


def _has_its_size(path: str) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with storage.open_input(path) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MOST_HEADER)))
            ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
            return bool(stream.size() == 8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def latest_checkpoint(run: str) -> str:
    """The newest checkpoint with intact weights of a run folder, or the folder itself if it is a checkpoint.

    Raises:
        UserError: nothing there, or no intact checkpoint.
    """
    if storage.path_type(run) == "missing":
        raise UserError(f"the run or checkpoint {run!r} does not exist")
    storage.require_folder(run, "the run or checkpoint")
    if storage.path_type(storage.join(run, MANIFEST)) == "file":
        return run
    found = find_checkpoint(run, (MODEL,))
    if found is None and storage.path_type(storage.join(run, FINETUNE_JSON)) == "file":
        models = sorted(n.rpartition("/")[0] for n in storage.contents(run) if n.endswith("/model/encoder.json"))
        advice = f"name a model of it, like {storage.join(run, models[0])}" if models else "it has no finished model"
        raise UserError(f"{run!r} is the output of a fine-tuning, not an encoder: {advice}")
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
    """{"step", "score"} of the best checkpoint, or None where no score was ever measured.

    Raises:
        UserError: the file is damaged.
    """
    where = storage.join(run, BEST)
    if storage.path_type(where) != "file":
        return None
    advice = "delete it, then run the same command again; the next score counts as the best"
    best = read_document(where, advice)
    with refusing_damage(where, advice):
        require_types(best, step=int, score=(int, float))
    return best


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
    names = storage.list_files(where) if storage.path_type(where) == "folder" else []
    return sorted({name.partition("/")[0] for name, _ in names if "/" in name})


def _is_finished(folder: str) -> bool:
    """Whether the manifest, written last, is there."""
    return storage.path_type(storage.join(folder, MANIFEST)) == "file"


def read_tensors(folder: str, name: str) -> dict[str, torch.Tensor]:
    """The verified tensors of a file of a checkpoint, by name."""
    data = _verified(folder, name)
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{folder!r} is not an intact checkpoint: {name} is damaged ({error})") from error


def write_tensors(stream: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write contiguous tensors of host memory as the library's `save` would, without its copy of all of them; returns
    their digest."""
    total, start = hashlib.blake2b(digest_size=16), 0
    header: dict[str, Any] = {}
    # The order of the library: large elements first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (DTYPES.index(tensors[name].dtype), name))
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts = (tensors[name].view(-1).view(torch.uint8).numpy() for name in names if tensors[name].nbytes)
    for part in itertools.chain([len(text).to_bytes(8, "little"), text], parts):
        total.update(part)  # type: ignore[arg-type]
        stream.write(part)
    return total.hexdigest()


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
        raise DamagedError(f"{folder!r} is not an intact checkpoint: {reading} cannot be read ({error})") from error
    if digest(data) != expected:
        raise DamagedError(f"{folder!r} is not an intact checkpoint: {name} does not match its digest")
    return data
