"""A fine-tuned model as it is handed on, with its head and its score."""

from typing import Any

from ajepa import storage
from ajepa.choices import Branch
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.finetuning.classifier import read_classifier, read_multi_label
from ajepa.finetuning.run import RESULT
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import known_facts
from ajepa.inference.transformers_folder import Head

ADVICE = "restore it from a copy, or delete it: the model card then says less"


def read_finetuned(folder: str, branch: Branch | None = None) -> tuple[AudioEncoder, Head, dict[str, Any]]:
    """The encoder of a fine-tuned model, its head, and what a model card says of it.

    Raises:
        UserError: damaged, or of another branch.
    """
    model, names = read_classifier(folder)
    if branch is not None and branch != model.audio.about["branch"]:
        raise UserError(
            f"{folder!r} was fine-tuned from the {model.audio.about['branch']} encoder, not the {branch} one"
        )
    several = read_multi_label(folder)
    head = Head(model.head.weight, model.head.bias, model.pooling, tuple(names), several)
    described: dict[str, Any] = {"labels": names, "pooling": model.pooling, "multi_label": several}
    result = storage.join(folder.rpartition("/")[0], RESULT)
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
