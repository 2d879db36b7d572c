"""What a run folder has recorded of its encoder, for the model cards of exports; an export carries it on."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.checkpoints import CHECKPOINTS, RUN_JSON, describe, read_info
from ajepa.config import FrontEndConfig, ModelConfig
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset

ADVICE = "restore it from a copy, or delete it: the model card then says less"
PROBES, RESULTS = "probes", "results.json"  # folder of a run, and what each probe in it found


def facts_of_run(checkpoint: str, digest: str) -> dict[str, Any]:
    """What a checkpoint and the run folder around it say of an encoder: "mask", "train", "total_steps", "dataset"
    (name, and clips and hours where they are known), "probes" and "other_probes".

    Args:
        digest: of the encoder; probes of other weights are only counted.

    Raises:
        UserError: no checkpoint there, or a damaged document.
    """
    info = read_info(checkpoint)
    run = checkpoint.rpartition(f"/{CHECKPOINTS}/")[0] or checkpoint
    config = info.config.to_dict()
    probes, others = probes_of(run, digest)
    return {
        "mask": config["mask"],
        "train": config["train"],
        "total_steps": info.total_steps,
        "dataset": _dataset(run, info.dataset_hash),
        "probes": probes,
        "other_probes": others,
    }


def card_facts(
    about: Mapping[str, Any],
    model: ModelConfig,
    front_end: FrontEndConfig,
    statistics: Statistics,
    weights: Mapping[str, Tensor],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """What `model_card` takes.

    Args:
        about: of the encoder: objective, branch, step, dataset_hash, digest, notes.
        weights: of the encoder.
        known: what is recorded of it, see `facts_of_run`.
    """
    return {
        **about,
        "model": dataclasses.asdict(model),
        **describe(front_end, statistics),
        "parameters": sum(value.numel() for value in weights.values()),
        **known,
    }


def probes_of(run: str, digest: str) -> tuple[list[dict[str, Any]], int]:
    """The probes in a run folder that scored these weights: protocol, data (the name alone: cards are handed on),
    dataset_hash, clips, splits and rows (see `_row`); and how many scored others.

    Raises:
        UserError: a damaged document.
    """
    folder = storage.join(run, PROBES)
    names = storage.list_files(folder) if storage.path_type(folder) == "folder" else []
    found, others = [], 0
    for name in sorted(name for name, _ in names if name.count("/") == 1 and name.endswith(f"/{RESULTS}")):
        where = storage.join(folder, name)
        content = read_document(where, ADVICE)
        with refusing_damage(where, ADVICE):
            about = content["about"]
            if digest not in about["encoder_digest"].split():
                others += 1
                continue
            kept = {key: about[key] for key in ("protocol", "dataset_hash", "splits", "clips")}
            rows = [_row(row) for row in content["rows"]]
            if not rows:
                raise ValueError("no rows")
            found.append(kept | {"data": _last(about["data"]), "rows": rows})
    return found, others


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a probe's table: features, pooling, metric, mean, std and interval95, numbers None where there are none."""
    low, high = row["interval95"]
    mean, std, low, high = (None if x is None else float(x) for x in (row["mean"], row["std"], low, high))
    names = {key: str(row[key]) for key in ("features", "pooling", "metric")}
    return names | {"mean": mean, "std": std, "interval95": [low, high]}


def _dataset(run: str, content_hash: str) -> dict[str, Any]:
    """Name, clips and hours of the training set."""
    where = storage.join(run, RUN_JSON)
    if storage.path_type(where) != "file":
        return {}
    about = read_document(where, ADVICE)
    data = about.get("data")
    if not isinstance(data, str):
        return {}
    found: dict[str, Any] = {"name": _last(data)}
    if "clips" in about:
        with refusing_damage(where, ADVICE):
            require_types(about, clips=int, hours=(int, float))
        return found | {"clips": about["clips"], "hours": about["hours"]}
    # Runs of earlier versions recorded neither: the shards may still be there.
    with contextlib.suppress(UserError, OSError):
        dataset = open_dataset(data) if storage.is_local(data) else None
        if dataset is not None and dataset.content_hash == content_hash:
            found |= {"clips": dataset.num_clips, "hours": dataset.hours}
    return found


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
