"""An encoder, or a fine-tuned classifier, as a folder that Hugging Face transformers loads without ajepa.

Nothing here imports transformers: the code that it runs lies in hub/ and is copied as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ajepa import storage
from ajepa.audio.logmel import LogMel
from ajepa.checkpoints import digest
from ajepa.choices import Pooling
from ajepa.inference.card import model_card
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import CARD, ORIGIN, facts_of, write_files

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
CODE = Path(__file__).with_name("hub")
MODULES = ("configuration_ajepa.py", "feature_extraction_ajepa.py", "front_end_ajepa.py", "modeling_ajepa.py")
AUTO_MAP = {
    "AutoConfig": "configuration_ajepa.AJepaConfig",
    "AutoModel": "modeling_ajepa.AJepaModel",
    "AutoModelForAudioClassification": "modeling_ajepa.AJepaForAudioClassification",
}
EXTRACTOR = "AJepaFeatureExtractor"


@dataclass(frozen=True)
class Head:
    """The linear layer of a fine-tuned model."""

    weight: Tensor  # [labels, D']
    bias: Tensor  # [labels]
    pooling: Pooling
    label_names: tuple[str, ...]
    multi_label: bool | None  # whether a clip may have several labels; None where it is not known


def write_transformers(output: str, audio: AudioEncoder, known: Mapping[str, Any], head: Head | None = None) -> None:
    """Write a folder of config.json, model.safetensors, preprocessor_config.json, the code and the model card.

    Args:
        known: what the model card says beside the encoder itself, see `facts`.

    Raises:
        UserError: something is at `output`.
    """
    extractor = {
        "feature_extractor_type": EXTRACTOR,
        "auto_map": {"AutoFeatureExtractor": f"feature_extraction_ajepa.{EXTRACTOR}"},
        "sampling_rate": audio.sample_rate,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "do_normalize": False,
    }
    files = {
        WEIGHTS: safetensors.torch.save(state_dict(audio, head), metadata={"format": "pt"}),
        PREPROCESSOR: _json(extractor),
        **{name: (CODE / name).read_bytes() for name in MODULES},
        CARD: model_card(facts_of(audio, known), "transformers").encode(),
        CONFIG: _json(config(audio, head)),
    }
    write_files(output, files)


def state_dict(audio: AudioEncoder, head: Head | None) -> dict[str, Tensor]:
    """The weights and the front end by the names of hub/modeling_ajepa.py."""
    log_mel = LogMel(audio.front_end)
    tensors = {f"encoder.{name}": value for name, value in audio.encoder.state_dict().items()} | {
        "front_end.window": log_mel.window,
        "front_end.filters": log_mel.filters,
        "front_end.mean": audio.normalise.mean,
        "front_end.std": audio.normalise.std,
    }
    if head is not None:
        tensors = {f"ajepa.{name}": value for name, value in tensors.items()} | {
            "classifier.weight": head.weight,
            "classifier.bias": head.bias,
        }
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def config(audio: AudioEncoder, head: Head | None) -> dict[str, Any]:
    """config.json: settings by the names of hub/configuration_ajepa.py."""
    model, front_end = audio.encoder.config, audio.front_end
    found: dict[str, Any] = {
        "architectures": ["AJepaModel" if head is None else "AJepaForAudioClassification"],
        "auto_map": AUTO_MAP,
        "model_type": "ajepa",
        "dtype": "float32",
        "torch_dtype": "float32",  # its name before transformers 4.56
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.mlp_ratio),
        "num_mel_bins": model.n_mels,
        "window_frames": model.crop_frames,
        "sampling_rate": front_end.sample_rate,
        "n_fft": front_end.n_fft,
        "win_length": front_end.win_length,
        "hop_length": front_end.hop_length,
        "f_min": front_end.f_min,
        "f_max": front_end.f_max,
        "log_epsilon": front_end.log_epsilon,
        "pooling": "mean" if head is None else head.pooling,
        "origin": origin(audio, head),
    }
    if head is None:
        return found
    found["id2label"] = {str(i): name for i, name in enumerate(head.label_names)}
    found["label2id"] = {name: i for i, name in enumerate(head.label_names)}
    if head.multi_label is not None and len(head.label_names) > 1:
        found["problem_type"] = f"{'multi' if head.multi_label else 'single'}_label_classification"
    return found


def origin(audio: AudioEncoder, head: Head | None) -> dict[str, Any]:
    """Where the weights come from: what tells one export from another."""
    found = {name: audio.about.get(name) for name in (*ORIGIN, "digest")}
    if head is not None:
        found["head_digest"] = digest(safetensors.torch.save({"weight": head.weight, "bias": head.bias}))
    return found


def written_origin(output: str) -> dict[str, Any] | None:
    """The origin of the folder that is at `output`, None where there is no such folder, or a damaged one."""
    where = storage.join(storage.absolute(output), CONFIG)
    if storage.path_type(where) != "file":
        return None
    try:
        found = json.loads(storage.read_text(where))["origin"]
    except (ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
