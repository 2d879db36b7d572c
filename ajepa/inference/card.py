"""The model card of an export: README.md, in Markdown with the front matter that model hubs read. It reads no file."""

from collections.abc import Mapping, Sequence
from typing import Any

from ajepa.choices import ExportFormat
from ajepa.config import PATCH

UNKNOWN = "not recorded"
LICENCE = """\
# license: not set. Fill it in before you publish: whether these weights may be passed on depends on the
# recordings that they were trained on."""
INTRODUCTION = """\
A vision transformer over patches of a log-mel, trained with A-JEPA on Ray. The export wrote this page from what the run
recorded; the licence, and what the model is meant for, are left to you."""
NOT_MEASURED = """\
Not measured. `python pipelines/probe.py --encoder RUN --data LABELLED_SHARDS` scores the encoder beside random
initialisations and log-mel statistics; then export the run again."""
ROUNDED = "rounded to float16 by the export; scores below are of the weights before"

NEEDS: dict[ExportFormat, str] = {
    "transformers": "transformers; not `ajepa`",
    "safetensors": "ajepa",
    "onnx": "onnxruntime",
    "torch": "torch",
}
LIBRARIES: dict[ExportFormat, str] = NEEDS | {"transformers": "transformers", "onnx": "onnx", "torch": "pytorch"}
# How a folder of each format is used; RATE is the sample rate, ACTIVATION what makes scores of logits.
USE: dict[ExportFormat, str] = {
    "transformers": """\
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained(folder, trust_remote_code=True)  # the code is in this folder
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
inputs = extractor(waveforms, sampling_rate=RATE, return_tensors="pt")  # a list of [samples], mono, RATE Hz
output = model(**inputs)
output.pooler_output, output.last_hidden_state  # [B, D] of clips, [B, T', D] of frames""",
    "safetensors": """\
import ajepa

encoder = ajepa.load_encoder(folder)
vectors = encoder(waveform, sample_rate)  # [B, D]; any rate, any length
frames, times_ms, valid = encoder.frame_embeddings(waveform, sample_rate)  # [B, T', D]""",
    "onnx": """\
session = onnxruntime.InferenceSession(folder + "/encoder.onnx")
clips, frames = session.run(None, {"waveform": waveform})  # float32 [B, samples], mono, RATE Hz""",
    "torch": """\
program = torch.export.load(folder + "/encoder.pt2").module()
clips, frames = program(waveform)  # float32 [B, samples], mono, RATE Hz""",
}
CLASSIFY: dict[ExportFormat, str] = {
    "transformers": """\
from transformers import pipeline

classify = pipeline("audio-classification", model=folder, trust_remote_code=True)
clip = {"array": waveform, "sampling_rate": RATE}  # or the path of a file, where ffmpeg is installed
classify(clip, function_to_apply="ACTIVATION")""",
    "safetensors": """\
classifier = ajepa.load_classifier(folder)
probabilities = classifier(waveform, sample_rate)  # [B, labels]; any rate, any length
classifier.top(probabilities, 3)  # the three most probable labels of each""",
}


def model_card(facts: Mapping[str, Any], format: ExportFormat) -> str:
    """The card as Markdown.

    Args:
        facts: "objective", "branch", "step", "dataset_hash", "digest", "notes"; "parameters", and "model", "front_end"
            and "statistics" as in encoder.json. Where known also "total_steps", "dataset" (name, clips, hours), "mask",
            "train", "weights" (float16 where they were rounded), "probes" and "other_probes" (see `facts.probes_of`),
            and of a fine-tuned model "finetuned": labels, pooling, multi_label and, where known, score (metric, test,
            probe).
        format: of the folder that the card lies in.
    """
    finetuned = facts.get("finetuned")
    tags = ["audio", "log-mel", "ajepa", *([] if finetuned else ["self-supervised-learning"])]
    lines = [
        "---",
        f"library_name: {LIBRARIES[format]}",
        f"pipeline_tag: {'audio-classification' if finetuned else 'feature-extraction'}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        LICENCE,
        "---",
        "",
        f"# Audio {'classifier' if finetuned else 'encoder'}, {facts['model']['depth']} x {facts['model']['width']}",
        "",
        INTRODUCTION,
        "",
        *_table(["", ""], _about(facts)),
        "",
        "## Measured",
        "",
        *(_score_of(finetuned) if finetuned else _probes(facts)),
        "",
        "## Use",
        "",
        *_use(facts, format),
    ]
    return "\n".join(lines) + "\n"


def _about(facts: Mapping[str, Any]) -> list[list[str]]:
    model, front_end, data = facts["model"], facts["front_end"], facts.get("dataset") or {}
    frame_ms = 1000 * front_end["hop_length"] / front_end["sample_rate"]
    width, window_s = model["width"], model["crop_frames"] * frame_ms / 1000
    size = f"{data['clips']} clips, {data['hours']:.2f} h" if "clips" in data else f"clips and hours {UNKNOWN}"
    mask, train = facts.get("mask"), facts.get("train")
    rows = {
        "objective": f"{facts['objective']}; the {facts['branch']} encoder",
        "training set": f"{data.get('name') or 'name ' + UNKNOWN}; digest {facts['dataset_hash'] or UNKNOWN}; {size}",
        "steps": f"{facts['step']}"
        + (f" of {facts['total_steps']}" if "total_steps" in facts else "")
        + (f"; batches of {train['batch_size']} clips, seed {train['seed']}" if train else ""),
        "masking": f"{mask['strategy']}, ratio {mask['mask_ratio']:g}, {mask['placement']}" if mask else UNKNOWN,
        **(_finetuning(facts["finetuned"], facts["notes"]) if facts.get("finetuned") else {}),
        "architecture": f"{model['depth']} layers, width {width}, {model['heads']} heads, patches of {PATCH} x {PATCH}"
        f"; {facts['parameters'] / 1e6:.2f} M parameters",
        "front end": f"mono, {front_end['sample_rate']} Hz; FFT {front_end['n_fft']}, Hann window "
        f"{front_end['win_length']}, hop {front_end['hop_length']}; {front_end['n_mels']} Slaney mel bins from "
        f"{front_end['f_min']:g} to {front_end['f_max']:g} Hz; log(power + {front_end['log_epsilon']:g}) as float16",
        "normalisation": f"mean and standard deviation of each mel bin over {facts['statistics']['frames']} frames of "
        "the training set",
        "window": f"{window_s:g} s; longer sound is cut into windows that cover it evenly, averaged where they overlap",
        "pooling": f"a clip is the mean over its patches, [{width}]; a frame, one each {PATCH * frame_ms:g} ms, is the "
        f"mean over {model['n_mels'] // PATCH} frequency bands, [{width}]",
        **({"weights": ROUNDED} if facts.get("weights") == "float16" else {}),
        "digest of the encoder": facts["digest"],
    }
    return [[f"{name}", f"{text}"] for name, text in rows.items()]


def _finetuning(found: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, str]:
    labels, shown = found["labels"], ", ".join(found["labels"][:20])
    several = {True: "a clip may have several", False: "one a clip", None: "one or several a clip"}[
        found["multi_label"]
    ]
    about = [f"{name} {notes[name]}" for name in ("epoch", "seed", "fold") if notes.get(name) is not None]
    return {
        "fine-tuned on": "; ".join([f"digest {notes.get('finetuned_on', UNKNOWN)}", *about]),
        "labels": f"{len(labels)}, {several}: {shown}{', ...' if len(labels) > 20 else ''}",
        "pooling before the head": found["pooling"],
    }


def _score_of(finetuned: Mapping[str, Any]) -> list[str]:
    score = finetuned.get("score")
    if not score:
        return ["The score on test clips is not recorded here: `finetune.py` writes it beside the model."]
    probe = score.get("probe")
    beside = "" if probe is None else f"; the linear probe of the frozen encoder {probe:.3f}"
    return [f"Test clips: {score['metric']} {score['test']:.3f}{beside}. One training, without an interval."]


def _probes(facts: Mapping[str, Any]) -> list[str]:
    """Scores of frozen features beside those of the baselines."""
    found = list(facts.get("probes", ()))
    lines = [] if found else [NOT_MEASURED]
    for probe in found:
        about = f"digest {probe['dataset_hash']}, {probe['clips']} clips, {probe['splits']}"
        heading = ["features", "pooling", probe["rows"][0]["metric"], "95% interval over clips"]
        title = f"{probe['protocol']} probe on {_cell(probe['data'])} ({about}):"
        lines += [*([""] if lines else []), title, "", *_table(heading, [_score(row) for row in probe["rows"]])]
    if facts.get("other_probes"):
        lines += ["", f"Left out: {facts['other_probes']} probes of the run's other checkpoints or branches."]
    return lines


def _score(row: Mapping[str, Any]) -> list[str]:
    mean, std, low, high = ("–" if x is None else f"{x:.3f}" for x in (row["mean"], row["std"], *row["interval95"]))
    return [row["features"], row["pooling"], mean if row["std"] is None else f"{mean} ± {std}", f"{low} to {high}"]


def _use(facts: Mapping[str, Any], format: ExportFormat) -> list[str]:
    """How this folder is loaded, then what other formats are made with, and loaded."""
    rate, finetuned = str(facts["front_end"]["sample_rate"]), facts.get("finetuned")
    activation = "sigmoid" if finetuned and finetuned["multi_label"] else "softmax"
    formats: list[ExportFormat] = [format, *(name for name in USE if name != format)]
    lines: list[str] = []
    for name in formats:
        here = name == format
        made = "This folder" if here else f"`python pipelines/export.py RUN OUTPUT --format {name}`"
        if finetuned and name == "safetensors" and not here:
            made = "The folder that `finetune.py` wrote"
        code = [USE[name], *([CLASSIFY[name]] if finetuned and name in CLASSIFY else [])]
        lines += [f"{made} (needs {NEEDS[name]}):", "", "```python", "\n\n".join(code), "```", ""]
    return [line.replace("RATE", rate).replace("ACTIVATION", activation) for line in lines[:-1]]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines]


def _cell(text: str) -> str:
    """Text that ends neither a cell nor a line."""
    return " ".join(text.split()).replace("|", "\\|")
