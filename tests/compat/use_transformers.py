"""An exported folder in Hugging Face transformers, where there is no ajepa. Prints one JSON line of what was measured.

    python use_transformers.py ENCODER CLASSIFIER EXPECTED [--hour]

ENCODER and CLASSIFIER are folders of `export.py --format transformers`; EXPECTED is what check_transformers.py wrote:
waveforms and what ajepa made of them.
"""

import json
import os
import resource
import sys
import tempfile
import time

import numpy as np

sys.modules["ajepa"] = None  # importing it would fail
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline  # noqa: E402

GIGABYTE = 1 << 30


def embed(model, extractor, waveforms):
    with torch.inference_mode():
        output = model(**extractor(waveforms, sampling_rate=16_000, return_tensors="pt"))
    return output.pooler_output.float().numpy(), output.last_hidden_state.float().numpy()


def largest(a, b) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max())


def main(encoder: str, classifier: str, expected: str, *options: str) -> None:
    torch.set_num_threads(1)
    known = dict(np.load(expected))
    began = time.perf_counter()
    model = AutoModel.from_pretrained(encoder, trust_remote_code=True)
    found = {"transformers": transformers.__version__, "torch": torch.__version__}
    found["load_s"] = round(time.perf_counter() - began, 2)
    extractor = AutoFeatureExtractor.from_pretrained(encoder, trust_remote_code=True)
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())
    waveforms = [known[f"waveform-{i}"] for i in range(len(known)) if f"waveform-{i}" in known]
    results = [embed(model, extractor, waveform) for waveform in waveforms]
    found["clips"] = max(largest(clip, known[f"clip-{i}"]) for i, (clip, _) in enumerate(results))
    found["frames"] = max(largest(frames, known[f"frames-{i}"]) for i, (_, frames) in enumerate(results))
    clips, frames = embed(model, extractor, waveforms)
    found["batch"] = max(largest(clips, known["clips"]), largest(frames, known["frames"]))
    assert max(found[name] for name in ("clips", "frames", "batch")) < 1e-5, found
    ten = known["ten"]
    began = time.perf_counter()
    for _ in range(10):
        embed(model, extractor, ten)
    found["ten_seconds_s"] = round((time.perf_counter() - began) / 10, 4)
    reference, _ = embed(model, extractor, ten)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        again = AutoModel.from_pretrained(folder, trust_remote_code=True)
        found["saved"] = largest(reference, embed(again, AutoFeatureExtractor.from_pretrained(
            folder, trust_remote_code=True), ten)[0])  # fmt: skip
    for name in ("float16", "bfloat16"):
        loaded = AutoModel.from_pretrained(encoder, trust_remote_code=True, dtype=getattr(torch, name))
        found[name] = largest(reference, embed(loaded, extractor, ten)[0])
        assert torch.equal(loaded.front_end.filters, model.front_end.filters) and found[name] < 0.1, found
    compiled = torch.compile(model)
    found["compiled"] = largest(reference, embed(compiled, extractor, ten)[0])
    assert found["saved"] == 0 and found["compiled"] < 1e-3, found
    head = AutoModelForAudioClassification.from_pretrained(classifier, trust_remote_code=True)
    with torch.inference_mode():
        logits = head(**extractor(waveforms, sampling_rate=16_000, return_tensors="pt")).logits.numpy()
    found["logits"] = largest(logits, known["logits"])
    classify = pipeline("audio-classification", model=classifier, trust_remote_code=True)
    best = classify({"array": waveforms[-1], "sampling_rate": 16_000})[0]["label"]
    assert best == head.config.id2label[int(known["logits"][-1].argmax())] and found["logits"] < 1e-5, found
    assert not any(name.split(".")[0] == "ajepa" and module for name, module in sys.modules.items())
    if "--hour" in options:
        _, frames = embed(model, extractor, np.zeros(3600 * 16_000, np.float32))
        assert frames.shape[1] == 22_500
        found["hour_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGABYTE, 2)
        assert found["hour_gb"] < 2, found
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
