"""Folders for Hugging Face transformers: the numbers of ajepa, without ajepa."""

import ast
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hub import (
    LABELS,
    SECONDS,
    expected_values,
    make_classifier,
    make_encoder,
    make_waveforms,
    native_logits,
    write_classifier,
)  # fmt: skip
from helpers.training_state import MODEL

from ajepa.choices import POOLINGS
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference.transformers_folder import CODE, MODULES, write_transformers

os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp())  # read when transformers is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="transformers is not installed here")

pytestmark = pytest.mark.xdist_group("transformers")  # its imports take seconds
TRUSTED = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def audio():
    return make_encoder()


@pytest.fixture(scope="module")
def folder(audio, tmp_path_factory):
    """The folder of an encoder. Read only."""
    path = tmp_path_factory.mktemp("hub") / "encoder"
    write_transformers(str(path), audio, {})
    return path


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """(classifier of ajepa, its folder for transformers). Read only."""
    path = tmp_path_factory.mktemp("hub")
    model = make_classifier(path / "model")
    write_classifier(path / "model", path / "classifier")
    return model, path / "classifier"


@pytest.fixture(scope="module")
def expected(audio, finetuned):
    return expected_values(audio, finetuned[0])


@pytest.fixture(scope="module")
def model(folder):
    return transformers.AutoModel.from_pretrained(folder, **TRUSTED)


@pytest.fixture(scope="module")
def extractor(folder):
    return transformers.AutoFeatureExtractor.from_pretrained(folder, **TRUSTED)


@torch.inference_mode()
def embed(model, extractor, waveforms):
    return model(**extractor(waveforms, sampling_rate=16_000, return_tensors="pt"))


def assert_near(found: torch.Tensor, wanted: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", range(len(SECONDS)), ids=[f"{s} s" for s in SECONDS])
def test_clips_and_frames_equal_those_of_ajepa(model, extractor, expected, index):
    output = embed(model, extractor, expected[f"waveform-{index}"])
    assert_near(output.pooler_output, expected[f"clip-{index}"])
    assert_near(output.last_hidden_state, expected[f"frames-{index}"])


def test_an_unequal_batch_equals_that_of_ajepa(audio, model, extractor, expected):
    waveforms = make_waveforms()
    output = embed(model, extractor, waveforms)
    assert_near(output.pooler_output, expected["clips"])
    assert_near(output.last_hidden_state, expected["frames"])
    valid = audio.frame_embeddings(waveforms, 16_000).valid
    assert [model.columns(len(w)) for w in waveforms] == valid.sum(dim=1).tolist()


def test_another_front_end_equals_that_of_ajepa(tmp_path):
    front_end = FrontEndConfig(sample_rate=32_000, n_fft=1024, win_length=800, hop_length=320, n_mels=64, f_max=14_000)
    native = make_encoder(dataclasses.replace(MODEL, n_mels=64, crop_frames=96), front_end)
    write_transformers(str(tmp_path / "out"), native, {})
    model = transformers.AutoModel.from_pretrained(tmp_path / "out", **TRUSTED)
    pad = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out", **TRUSTED)
    waveforms = make_waveforms()[2:7]
    with torch.inference_mode():
        output = model(**pad(waveforms, sampling_rate=32_000, return_tensors="pt"))
    assert_near(output.pooler_output, native(waveforms, 32_000).numpy())
    assert_near(output.last_hidden_state, native.frame_embeddings(waveforms, 32_000).embeddings.numpy())


def test_hidden_states_are_those_of_the_blocks(audio, model, extractor):
    waveform = make_waveforms()[3]
    states = model(
        **extractor(waveform, sampling_rate=16_000, return_tensors="pt"), output_hidden_states=True
    ).hidden_states
    log_mel, num_frames = audio.log_mels(waveform, 16_000)
    expected, _ = audio.tokens(log_mel, num_frames, layers=[1], combine="stack")
    assert len(states) == audio.depth + 1 and states[1].shape == (1, 8, audio.width)
    layer = torch.nn.functional.layer_norm
    tokens, _ = model.tokens(torch.from_numpy(waveform)[None], None, by_row=True, hidden_states=True)
    torch.testing.assert_close(layer(tokens[1], (audio.width,)), expected[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(states[1], tokens[1].mean(dim=1), atol=1e-5, rtol=0)


def test_everything_of_the_front_end_is_in_the_weights(model):
    assert {name for name, _ in model.named_buffers()} == {
        f"front_end.{name}" for name in ("window", "filters", "mean", "std")
    }
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


def test_a_model_of_its_config_alone_has_a_working_front_end(folder, model):
    config = transformers.AutoConfig.from_pretrained(folder, **TRUSTED)
    fresh = transformers.AutoModel.from_config(config, **TRUSTED)
    assert torch.equal(fresh.front_end.filters, model.front_end.filters)
    assert torch.equal(fresh.front_end.window, model.front_end.window)
    assert fresh(torch.zeros(1, 8000)).pooler_output.isfinite().all()


def test_a_saved_model_loads_again(model, extractor, expected, tmp_path):
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, **TRUSTED)
    padded = transformers.AutoFeatureExtractor.from_pretrained(tmp_path, **TRUSTED)
    reloaded, before = embed(again, padded, expected["ten"]), embed(model, extractor, expected["ten"])
    assert torch.equal(reloaded.pooler_output, before.pooler_output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", ["when loaded", "later"])
def test_half_precision_leaves_the_front_end_exact(folder, model, extractor, expected, dtype, cast):
    asked = {"dtype": dtype} if cast == "when loaded" else {}
    half = transformers.AutoModel.from_pretrained(folder, **asked, **TRUSTED).to(dtype)
    for name, buffer in half.front_end.named_buffers():
        assert torch.equal(buffer, getattr(model.front_end, name)), name
    found = embed(half, extractor, expected["ten"]).pooler_output
    assert found.dtype == dtype
    exact = embed(model, extractor, expected["ten"]).pooler_output
    assert 0 < (found.float() - exact).abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.process
def test_a_compiled_model_gives_about_the_same(model, extractor, expected):
    compiled = torch.compile(model)
    found = embed(compiled, extractor, expected["ten"]).pooler_output
    torch.testing.assert_close(found, embed(model, extractor, expected["ten"]).pooler_output, atol=1e-3, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_classifier_gives_the_logits_of_ajepa(pooling, extractor, tmp_path):
    native, waveforms = make_classifier(tmp_path / "model", pooling), make_waveforms()[:6]
    write_classifier(tmp_path / "model", tmp_path / "out")
    head = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path / "out", **TRUSTED)
    assert head.config.id2label == dict(enumerate(LABELS))
    wanted = native_logits(native, waveforms)
    torch.testing.assert_close(embed(head, extractor, waveforms).logits, torch.from_numpy(wanted), atol=1e-5, rtol=1e-5)


def test_the_pipeline_names_the_label(finetuned, expected):
    classify = transformers.pipeline("audio-classification", model=str(finetuned[1]), **TRUSTED)
    found = classify({"array": expected["waveform-5"], "sampling_rate": 16_000}, function_to_apply="softmax")
    logits = torch.from_numpy(expected["logits"][5])
    assert found[0]["label"] == LABELS[int(logits.argmax())]
    assert abs(found[0]["score"] - float(logits.softmax(dim=0).max())) < 1e-4


@pytest.mark.parametrize(("multi_label", "problem"), [(True, "multi"), (False, "single"), (None, None)])
def test_a_classifier_says_whether_clips_have_several_labels(multi_label, problem, tmp_path):
    make_classifier(tmp_path / "model", multi_label=multi_label)
    write_classifier(tmp_path / "model", tmp_path / "out")
    found = json.loads((tmp_path / "out/config.json").read_text()).get("problem_type")
    assert found == (problem and f"{problem}_label_classification")


def test_a_classifier_s_encoder_loads_by_itself(finetuned, expected, extractor):
    native, folder = finetuned
    model = transformers.AutoModel.from_pretrained(folder, **TRUSTED)
    with torch.no_grad():
        wanted = native.audio(expected["ten"], 16_000).numpy()
    assert_near(embed(model, extractor, expected["ten"]).pooler_output, wanted)


def test_an_encoder_is_no_classifier_until_it_is_given_labels(folder):
    load = transformers.AutoModelForAudioClassification.from_pretrained
    with pytest.raises(ValueError, match="holds an encoder without labels: load it with AutoModel"):
        load(folder, **TRUSTED)
    model = load(folder, num_labels=3, **TRUSTED)
    loss = model(0.1 * torch.randn(2, 16_000), labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert model.ajepa.encoder.positions.grad.abs().sum() > 0 and model.classifier.out_features == 3


@pytest.mark.parametrize(
    ("waveform", "rate", "error", "message"),
    [
        (np.zeros(800, np.float32), 44_100, ValueError, "sampled with 16000 and not 44100"),
        (np.zeros(800, np.int16), 16_000, TypeError, "divide 16-bit integers by 32768"),
        (np.full(800, np.nan, np.float32), 16_000, ValueError, "NaN or infinite"),
        (np.zeros(0, np.float32), 16_000, ValueError, "an empty one"),
        ([np.zeros(800, np.float32), np.zeros(0, np.float32)], 16_000, ValueError, "the waveform is empty"),
        ([], 16_000, ValueError, "there is no waveform"),
    ],
    ids=["rate", "integers", "nan", "empty", "one empty", "none"],
)
def test_the_extractor_refuses(extractor, waveform, rate, error, message):
    with pytest.raises(error, match=message):
        extractor(waveform, sampling_rate=rate)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (torch.zeros(800), None, r"shape \[batch, samples\]"),
        (torch.zeros(1, 0), None, r"shape \[batch, samples\]"),
        (torch.zeros(1, 800), torch.ones(1, 700), "the shape of input_values"),
        (torch.zeros(1, 800), torch.arange(800)[None] > 10, "padding_side='right'"),
        (torch.zeros(1, 800), torch.zeros(1, 800), "each clip has samples"),
    ],
    ids=["one axis", "empty", "another mask", "padding at the left", "no samples"],
)
def test_the_model_refuses(model, values, mask, message):
    with pytest.raises(ValueError, match=message):
        model(values, attention_mask=mask)


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(OSError, match="no file named"):
        transformers.AutoModel.from_pretrained(tmp_path, **TRUSTED)


def test_without_trust_transformers_says_what_to_pass(folder):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModel.from_pretrained(folder, trust_remote_code=False)


def test_the_code_is_copied_and_imports_nothing_of_the_project(folder):
    assert set(MODULES) == {path.name for path in CODE.glob("*_ajepa.py")}
    for name in MODULES:
        source = (folder / name).read_text()
        assert source == (CODE / name).read_text()
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
        relative = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        absolute = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        absolute |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        allowed = {"collections", "math", "typing", "numpy", "torch", "transformers"}
        assert {str(found).split(".")[0] for found in absolute} <= allowed
        assert {f"{found}.py" for found in relative} <= set(MODULES)


def test_a_folder_never_writes_over_anything(audio, folder):
    before = {path: path.read_bytes() for path in Path(folder).iterdir()}
    with pytest.raises(UserError, match="exists: choose another"):
        write_transformers(str(folder), audio, {})
    assert before == {path: path.read_bytes() for path in Path(folder).iterdir()}
