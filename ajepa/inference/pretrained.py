"""Encoders to and from files: load_encoder() from a run, a checkpoint or an export, export_encoder(), and the random
initialisation that trained ones are compared with."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.checkpoints import describe, digest, latest_checkpoint, read_info, read_weights
from ajepa.choices import Branch, Precision, StoredWeights
from ajepa.config import FrontEndConfig, ModelConfig
from ajepa.config_json import EARLIER, from_dict
from ajepa.documents import read_document, refusing_damage
from ajepa.errors import UserError
from ajepa.inference.card import model_card
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.facts import card_facts, facts_of_run
from ajepa.inference.shipped import encoder_path, require_intact, shipped_name
from ajepa.model.vit import Encoder
from ajepa.objectives.registry import OBJECTIVES, initialised_by

EXPORT_JSON, EXPORT_WEIGHTS, EXPORT_VERSION = "encoder.json", "encoder.safetensors", 2
AGAIN = "export it again"  # what is said of a damaged one
UNFINISHED = "encoder.unfinished"  # file of an export while it is written
CARD = "README.md"  # of an export of any format
RECORDED = "recorded"  # what the run says of the encoder, in encoder.json
ORIGIN = ("objective", "branch", "step", "dataset_hash")  # of a pretraining, kept in what is made of it


def load_encoder(
    path: str,
    branch: Branch | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> AudioEncoder:
    """The encoder of a run folder, a checkpoint or an export, or one that comes with the package, frozen and in eval
    mode.

    Args:
        path: local path or URI, also `hf://OWNER/REPOSITORY` of an export on the Hugging Face Hub; or a name: "nano"
            comes with the package. A path that exists is taken first.
        branch: "target", the EMA target encoder, or "context", the trained one; by default the one that was exported,
            or the one that the run's objective evaluates: of A-JEPA the target encoder, which spec 9 finds slightly
            better.
        precision: what its layers multiply in; "bf16" is faster on GPUs and CPUs with such instructions, and good to
            about 0.01. Embeddings are float32.

    Raises:
        UserError: nothing there, no intact checkpoint, one of another version, no encoder of this branch, or no GPU
            where one is asked for.
    """
    path = encoder_path(str(path))
    if (name := shipped_name(path)) is not None:
        require_intact(name)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r}: torch finds no GPU here")
    exported = storage.path_type(storage.join(path, EXPORT_JSON)) == "file"
    folder = path if exported else latest_checkpoint(path)
    parts = _read_export(path, branch) if exported else _read_run(folder, branch)
    encoder = Encoder(parts.model)
    try:
        encoder.load_state_dict(parts.weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder!r} holds other weights than its config says: {error}") from error
    return _frozen(encoder, parts.front_end, parts.statistics, parts.about | {"source": path}, precision).to(device)


def random_encoder(model: ModelConfig, seed: int, front_end: FrontEndConfig, statistics: Statistics) -> AudioEncoder:
    """The initialisation that pretraining with this seed starts from: the baseline of every probe."""
    with initialised_by(seed):
        encoder = Encoder(model)
    return _frozen(encoder, front_end, statistics, {"source": "random init", "seed": seed})


def export_encoder(
    source: str,
    output: str,
    branch: Branch | None = None,
    notes: dict[str, Any] | None = None,
    weights: StoredWeights = "float32",
) -> dict[str, Any]:
    """Write the encoder of a run or checkpoint into a small folder of its own: encoder.safetensors, README.md (the
    model card) and encoder.json (architecture, front end, statistics, where it comes from, digest), which is written
    last and returned. An export that was killed before that is written anew.

    Args:
        branch: see load_encoder.
        notes: more about where it comes from, kept in encoder.json.
        weights: what they are stored in. float16 halves the folder; loaded, they are float32 again.

    Raises:
        UserError: no intact checkpoint at `source`, no encoder of this branch, something already at `output`, or
            weights that float16 cannot hold.
    """
    audio = load_encoder(latest_checkpoint(encoder_path(str(source))), branch)
    known = facts_of_run(audio.about["source"], audio.about["digest"])
    if weights == "float16":
        round_weights(audio)
        known["weights"] = weights
    return write_export(
        output,
        audio.encoder.config,
        audio.front_end,
        audio.normalise.statistics,
        audio.encoder.state_dict(),
        audio.about,
        notes,
        known,
        weights,
    )


def round_weights(audio: AudioEncoder) -> None:
    """Round the weights to what float16 holds, as an export in float16 stores them; they stay float32.

    Raises:
        UserError: one is too large for float16.
    """
    for name, value in audio.encoder.state_dict().items():
        value.copy_(value.half())
        if not value.isfinite().all():
            raise UserError(f"--weights float16: {name} has values above 65504; export it as float32")
    audio.about["digest"] = _digest_of(audio)


def known_facts(source: str, audio: AudioEncoder) -> dict[str, Any]:
    """What an export, or a run folder or checkpoint, has recorded of the encoder that was loaded from it.

    Raises:
        UserError: a document is damaged.
    """
    path = encoder_path(str(source))
    exported = storage.join(path, EXPORT_JSON)
    if storage.path_type(exported) == "file":
        with refusing_damage(exported, AGAIN):
            known = dict(read_document(exported, AGAIN).get(RECORDED, {}))
            model_card(facts_of(audio, known), "safetensors")
        return known
    return facts_of_run(latest_checkpoint(path), audio.about["digest"])


def facts_of(audio: AudioEncoder, known: Mapping[str, Any]) -> dict[str, Any]:
    """What `model_card` takes, of an encoder that was loaded and what is recorded of it."""
    about = {name: audio.about.get(name) for name in (*ORIGIN, "digest")} | {"notes": audio.about.get("notes", {})}
    config, statistics = audio.encoder.config, audio.normalise.statistics
    return card_facts(about, config, audio.front_end, statistics, audio.encoder.state_dict(), known)


def write_export(
    output: str,
    model: ModelConfig,
    front_end: FrontEndConfig,
    statistics: Statistics,
    weights: dict[str, Tensor],
    about: dict[str, Any],
    notes: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    stored: StoredWeights = "float32",
) -> dict[str, Any]:
    """Write encoder weights into an export folder; see export_encoder.

    Args:
        about: "objective", "branch", "step" and "dataset_hash" of the pretraining.
        known: what else the model card says, see `facts`; kept in encoder.json.
        stored: as what; of weights that float16 holds exactly, see `round_weights`.
    """
    dtype = torch.float16 if stored == "float16" else torch.float32
    data = safetensors.torch.save({name: value.to(dtype).contiguous() for name, value in weights.items()})
    described = {
        "format_version": EXPORT_VERSION,
        **{name: about[name] for name in ORIGIN},
        "notes": notes or {},
        RECORDED: known or {},
        "model": dataclasses.asdict(model),
        **describe(front_end, statistics),
        "digest": digest(data),
    }
    origin = {name: about[name] for name in ORIGIN} | {"digest": weights_digest(model, front_end, statistics, weights)}
    facts = card_facts(origin | {"notes": notes or {}}, model, front_end, statistics, weights, known or {})
    card = model_card(facts, "safetensors")
    files = {EXPORT_WEIGHTS: data, CARD: card.encode(), EXPORT_JSON: json.dumps(described, indent=1).encode()}
    write_files(output, files)
    return described


def write_files(output: str, files: Mapping[str, bytes]) -> None:
    """Write a folder of files, the one that makes it complete last. What a killed command left of it is written anew.

    Raises:
        UserError: something else is at `output`.
    """
    output = storage.absolute(str(output))
    found = storage.contents(output)
    interrupted = UNFINISHED in found and found <= {UNFINISHED, *list(files)[:-1]}
    if storage.path_type(output) == "file" or (found and not interrupted):
        raise UserError(f"the output {output!r} exists: choose another, or delete it first")
    storage.make_folder(output)
    storage.write_text(storage.join(output, UNFINISHED), "")
    for name, data in files.items():
        with storage.atomic_output(storage.join(output, name)) as stream:
            stream.write(data)
    storage.delete(storage.join(output, UNFINISHED))


@dataclasses.dataclass(frozen=True)
class _Parts:
    model: ModelConfig
    front_end: FrontEndConfig
    statistics: Statistics
    weights: dict[str, Tensor]
    about: dict[str, Any]


def _read_run(folder: str, branch: Branch | None) -> _Parts:
    info = read_info(folder)
    objective = info.config.train.objective
    branch = branch or OBJECTIVES[objective].evaluated
    prefix = f"{branch}_encoder."
    weights = {k.removeprefix(prefix): v for k, v in read_weights(folder).items() if k.startswith(prefix)}
    if not weights:
        raise UserError(f"{folder!r} has no {branch} encoder: {objective} trains without one")
    about = {"objective": objective, "branch": branch, "step": info.step, "dataset_hash": info.dataset_hash}
    return _Parts(info.config.model, info.front_end, info.statistics, weights, about)


def _read_export(folder: str, branch: Branch | None) -> _Parts:
    where = storage.join(folder, EXPORT_JSON)
    try:
        described = read_document(where, AGAIN)
        if described["format_version"] != EXPORT_VERSION:
            raise UserError(
                f"{folder!r} has export format {described['format_version']}, this version reads {EXPORT_VERSION}: "
                "export the run again"
            )
        described = EARLIER | described
        if branch is not None and branch != described["branch"]:
            raise UserError(f"{folder!r} holds the {described['branch']} encoder, not the {branch} encoder")
        with storage.open_input(storage.join(folder, EXPORT_WEIGHTS)) as stream:
            data = stream.read()
        if digest(data) != described["digest"]:
            raise UserError(f"{folder!r} is damaged: {EXPORT_WEIGHTS} does not match its digest; export it again")
        return _Parts(
            from_dict(ModelConfig, described["model"]),
            from_dict(FrontEndConfig, described["front_end"]),
            Statistics.from_dict(described["statistics"]),
            {name: value.float() for name, value in safetensors.torch.load(data).items()},
            {name: described[name] for name in (*ORIGIN, "notes")},
        )
    except (OSError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder!r} is damaged ({error!r}): {AGAIN}") from error


def _frozen(
    encoder: Encoder,
    front_end: FrontEndConfig,
    statistics: Statistics,
    about: dict[str, Any],
    precision: Precision = "fp32",
) -> AudioEncoder:
    frozen = AudioEncoder(encoder.requires_grad_(False), front_end, statistics, precision=precision, about=about)
    frozen.about["digest"] = _digest_of(frozen)
    return frozen.eval()


def _digest_of(audio: AudioEncoder) -> str:
    statistics = audio.normalise.statistics
    return weights_digest(audio.encoder.config, audio.front_end, statistics, audio.encoder.state_dict())


def weights_digest(
    model: ModelConfig, front_end: FrontEndConfig, statistics: Statistics, weights: Mapping[str, Tensor]
) -> str:
    """BLAKE2b-128 of everything that embeddings depend on: weights, architecture, front end and statistics."""
    described = [dataclasses.asdict(model), describe(front_end, statistics)]
    total = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16)
    for name, value in sorted(weights.items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
