"""A fine-tuned model as it is handed on: found in the output of a fine-tuning, with its head and its score."""

import re
from typing import Any

from ajepa import storage
from ajepa.choices import Branch
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.finetuning.classifier import HEAD_JSON, load_classifier, read_multi_label
from ajepa.finetuning.run import FINETUNE_JSON, MODEL_FOLDER, RESULT
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import known_facts
from ajepa.inference.transformers_folder import Head

ADVICE = "restore it from a copy, or delete it: the model card then says less"


def finetuned_model(path: str) -> str | None:
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


def read_finetuned(folder: str, branch: Branch | None = None) -> tuple[AudioEncoder, Head, dict[str, Any]]:
    """The encoder of a fine-tuned model, its head, and what a model card says of it.

    Raises:
        UserError: damaged, or of another branch.
    """
    model, names = load_classifier(folder)
    if branch is not None and branch != model.audio.about["branch"]:
        raise UserError(
            f"{folder!r} was fine-tuned from the {model.audio.about['branch']} encoder, not the {branch} one"
        )
    several = read_multi_label(folder)
    fit = folder.rpartition("/")[0]
    if several is None:
        several = _by_metric(storage.join(fit.rpartition("/")[0], FINETUNE_JSON))
    head = Head(model.head.weight, model.head.bias, model.pooling, tuple(names), several)
    described: dict[str, Any] = {"labels": names, "pooling": model.pooling, "multi_label": several}
    result = storage.join(fit, RESULT)
    if several is not None and storage.path_type(result) == "file":
        found = read_document(result, ADVICE)
        with refusing_damage(result, ADVICE):
            require_types(found, test=float)
        described["score"] = {
            "metric": "mAP" if several else "accuracy",
            "test": found["test"],
            "probe": found.get("probe"),
        }
    return model.audio, head, known_facts(folder, model.audio) | {"finetuned": described}


def _by_metric(where: str) -> bool | None:
    """Models of earlier versions do not say whether clips may have several labels; the fine-tuning's metric does."""
    if storage.path_type(where) != "file":
        return None
    return {"mAP": True, "accuracy": False}.get(str(read_document(where, ADVICE).get("metric")))
