"""Checkpoints of a fine-tuning, in pretraining's format with other contents; and the fine-tuned model as files.

A checkpoint holds model.safetensors, with `ema` average.safetensors, optimizer.safetensors and checkpoint.json. A
finished model is a folder that `load_encoder` takes, with the head beside it.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from ajepa import storage
from ajepa.checkpoints import (
    FINETUNE_JSON,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RUN_JSON,
    DamagedError,
    Snapshot,
    digest,
    read_tensors,
)
from ajepa.choices import Pooling, Precision
from ajepa.documents import read_document
from ajepa.errors import UserError
from ajepa.finetuning.model import Classifier
from ajepa.finetuning.step import FinetuneState
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import EXPORT_JSON, load_encoder, write_export
from ajepa.training.snapshot import host_copies, optimizer_moments, read_once, restore_moments, share, shared_moments

FORMAT = "finetune-1"
AVERAGE = "average.safetensors"
HEAD, HEAD_JSON = "head.safetensors", "head.json"
MODEL_FOLDER = "model"  # of a fit: an export with the head beside it
AGAIN = "fine-tune it again"


@dataclass(frozen=True)
class Score:
    """A point of a validation curve."""

    epoch: int
    step: int
    score: float


def snapshot(state: FinetuneState, curve: list[Score], report: dict[str, Any]) -> Snapshot:
    """Copy everything a training needs to go on.

    Args:
        report: of this step, for a training that is killed before that report is recorded; empty if none is due.
    """
    files: dict[str, dict[str, torch.Tensor]] = {
        MODEL: dict(state.core.named_weights()),
        OPTIMIZER: optimizer_moments(state.core.named_weights(), state.optimizer),
    }
    if state.average is not None:
        files[AVERAGE] = dict(state.average.named_weights())
    manifest = {
        "format_version": FORMAT,
        "step": state.step,
        "total_steps": state.schedule.total_steps,
        "config": state.config.to_dict(),
        "curve": [vars(point) for point in curve],
        "report": report,
    }
    return Snapshot(state.step, host_copies(files), manifest)


def restore(folder: str, state: FinetuneState) -> tuple[list[Score], dict[str, Any]]:
    """Load a checkpoint into a state; returns the validation curve so far and the report of its step.

    Raises:
        UserError: written by another version, or of another model.
    """
    where = storage.join(folder, MANIFEST)
    try:
        manifest = json.loads(storage.read_text(where))
        if manifest["format_version"] != FORMAT:
            raise UserError(f"{folder!r} has checkpoint format {manifest['format_version']}, not {FORMAT}")
        step, curve = int(manifest["step"]), [Score(**point) for point in manifest["curve"]]
        report = dict(manifest.get("report", {}))  # earlier versions kept none
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{where!r} is damaged ({error!r})") from error
    load_weights(folder, state.core, MODEL)
    if state.average is not None:
        load_weights(folder, state.average, AVERAGE)
    if step:  # AdamW keeps nothing before its first step
        restore_moments(folder, state.core.named_weights(), state.optimizer)
    state.step = step
    return curve, report


def resume(run: str, state: FinetuneState) -> tuple[list[Score], dict[str, Any]]:
    """Load the newest intact checkpoint of a training into the state of every worker; returns the validation curve so
    far and the report of the checkpoint's step, both empty where there is none yet.

    Raises:
        UserError: there are checkpoints and none is intact, or the workers see different ones.
    """

    def load(folder: str) -> tuple[int, list[Score], dict[str, Any]]:
        curve, report = restore(folder, state)
        return state.step, curve, report

    found = read_once(run, state, load)
    if found is None:
        return [], {}
    state.step, curve, report = found
    if state.world_size > 1:
        models = [state.core] if state.average is None else [state.core, state.average]
        weights = [parameter for model in models for _, parameter in model.named_weights()]
        parameters = list(state.core.named_weights())
        share([*weights, *(shared_moments(parameters, state.optimizer) if state.step else [])])
    return curve, report


@torch.no_grad()
def load_weights(folder: str, model: Classifier, file: str) -> None:
    """Load encoder and head from a file of a checkpoint.

    Raises:
        UserError: names or shapes differ; another number of labels is named.
    """
    weights = read_tensors(folder, file)
    head = weights.get("head.bias")
    if head is not None and len(head) != model.head.out_features:
        raise UserError(
            f"the head in {folder!r} has {len(head)} labels, the data have {model.head.out_features}: "
            "go on with the data it was started with, or choose another --output"
        )
    own = dict(model.named_weights())
    odd = [n for n in {*own, *weights} if n not in own or n not in weights or own[n].shape != weights[n].shape]
    if odd:
        raise UserError(f"{folder!r} holds another model: {sorted(odd)[:3]}")
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def write_model(
    folder: str,
    model: Classifier,
    label_names: tuple[str, ...],
    notes: dict[str, Any],
    multi_label: bool | None = None,
) -> None:
    """Write the encoder as an export and the head beside it. What was half written there is replaced.

    Args:
        notes: what it was fine-tuned on and how, kept in encoder.json.
        multi_label: whether a clip may have several labels; None where it is not known.
    """
    storage.delete(folder)
    copies = host_copies({MODEL: dict(model.named_weights()), HEAD: model.plain_head()})
    audio, weights, data = model.audio, copies[MODEL], safetensors.torch.save(copies[HEAD])
    encoder = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    described = {"labels": list(label_names), "pooling": model.pooling, "multi_label": multi_label}
    write_export(
        folder,
        audio.encoder.config,
        audio.front_end,
        audio.normalise.statistics,
        encoder,
        audio.about,
        notes,
        {"finetuned": described},
    )
    with storage.atomic_output(storage.join(folder, HEAD)) as stream:
        stream.write(data)
    about = {
        "pooling": model.pooling,
        "label_names": list(label_names),
        "multi_label": multi_label,
        "digest": digest(data),
    }
    storage.write_text(storage.join(folder, HEAD_JSON), json.dumps(about, indent=1))


def find_classifier(path: str) -> str | None:
    """The fine-tuned model that a folder is, or the only one in the output of a fine-tuning; None for anything else.

    Raises:
        UserError: an output of several models.
    """
    path = storage.absolute(path)
    if storage.path_type(path) != "folder":
        return None
    if storage.path_type(storage.join(path, HEAD_JSON)) == "file":
        return path
    pattern = re.compile(rf"([^/]+/{MODEL_FOLDER})/{re.escape(HEAD_JSON)}")
    models = sorted(found[1] for name in storage.contents(path) if (found := pattern.fullmatch(name)))
    if len(models) > 1:
        named = ", ".join(models[:3]) + (", ..." if len(models) > 3 else "")
        raise UserError(f"{path!r} holds {len(models)} fine-tuned models: name one, like {path}/{models[0]} ({named})")
    return storage.join(path, models[0]) if models else None


def require_classifier(path: str) -> str:
    """The same.

    Raises:
        UserError: no fine-tuned model there, or several; what it is instead, and what to do.
    """
    found = find_classifier(path)
    if found is not None:
        return found
    if storage.path_type(storage.join(storage.absolute(path), FINETUNE_JSON)) == "file":
        raise UserError(f"{path!r} is a fine-tuning without a finished model: run the same finetune.py command again")
    for marker, what in ((EXPORT_JSON, "an export"), (RUN_JSON, "a pretraining run"), (MANIFEST, "a checkpoint")):
        if storage.path_type(storage.join(storage.absolute(path), marker)) == "file":
            raise UserError(
                f"{path!r} holds an encoder ({what}), which knows no labels: fine-tune it with finetune.py, "
                "and give one of the models that it writes"
            )
    raise UserError(f"{path!r} is no fine-tuned model: finetune.py writes one for each seed and fold")


def read_classifier(folder: str, precision: Precision = "fp32") -> tuple[Classifier, list[str]]:
    """A fine-tuned model, frozen, and the names of its labels in the order of its logits.

    Raises:
        UserError: a damaged one.
    """
    audio: AudioEncoder = load_encoder(folder, precision=precision)
    about = read_document(storage.join(folder, HEAD_JSON), AGAIN)
    try:
        with storage.open_input(storage.join(folder, HEAD)) as stream:
            data = stream.read()
        if digest(data) != about["digest"]:
            raise UserError(f"{folder!r} is damaged: {HEAD} does not match its digest; {AGAIN}")
        pooling: Pooling = about["pooling"]
        names: list[str] = about["label_names"]
        head = safetensors.torch.load(data)
        model = Classifier(audio, len(names), pooling)
        model.head.load_state_dict(head)
    except (OSError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder!r} is damaged ({error!r}): {AGAIN}") from error
    return model.requires_grad_(False).eval(), names


def read_multi_label(folder: str) -> bool | None:
    """Whether clips may have several labels, as a fine-tuned model says, or, where it is of an earlier version, the
    metric of the fine-tuning whose output it lies in; None where neither does.

    Raises:
        UserError: a damaged one.
    """
    where = storage.join(folder, HEAD_JSON)
    found = read_document(where, AGAIN).get("multi_label")
    if not isinstance(found, bool | None):
        raise UserError(f"{where!r} is damaged (multi_label is {type(found).__name__}): {AGAIN}")
    if found is not None:
        return found
    output = storage.join(folder.rpartition("/")[0].rpartition("/")[0], FINETUNE_JSON)
    if storage.path_type(output) != "file":
        return None
    advice = "restore it from a copy, or delete it: then it is not known whether clips may have several labels"
    return {"mAP": True, "accuracy": False}.get(str(read_document(output, advice).get("metric")))
