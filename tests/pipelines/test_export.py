"""export.py --format: one file for other runtimes, beside or instead of the folder that load_encoder reads."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.hub import make_classifier
from helpers.training_state import save_run
from safetensors.torch import load_file

import ajepa
from ajepa.errors import UserError
from pipelines.cli.arguments import parse
from pipelines.export import ExportArgs
from pipelines.jobs import export

FILES = ["README.md", "encoder.json", "encoder.pt2", "encoder.safetensors"]
pytestmark = pytest.mark.xdist_group("graph")  # with tests/inference/test_graph.py, whose imports take ten seconds


def run_export(*argv: object) -> None:
    export.main(parse(ExportArgs, "", [str(a) for a in argv]))


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset):
    path = tmp_path_factory.mktemp("export") / "run"
    save_run(path, small_dataset, 1)
    return path


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)


@pytest.mark.slow
def test_onnx_of_a_run(run, waveform, tmp_path, capsys):
    run_export(run, tmp_path / "out", "--format", "onnx")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["README.md", "encoder.onnx"]
    assert "onnxruntime.InferenceSession" in capsys.readouterr().out
    clips, _ = onnxruntime.InferenceSession(tmp_path / "out/encoder.onnx").run(None, {"waveform": waveform})
    torch.testing.assert_close(torch.from_numpy(clips), ajepa.load_encoder(run)(waveform, 16_000), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_program_of_an_export_lies_beside_its_weights(run, waveform, tmp_path):
    run_export(run, tmp_path, "--branch", "context")
    (tmp_path / "README.md").write_text("with a licence")  # a card that is there stays
    run_export(tmp_path, tmp_path, "--branch", "context", "--format", "torch")
    assert (tmp_path / "README.md").read_text() == "with a licence"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "encoder.json",
        "encoder.pt2",
        "encoder.safetensors",
    ]
    clips, _ = torch.export.load(tmp_path / "encoder.pt2").module()(torch.from_numpy(waveform))
    expected = ajepa.load_encoder(run, "context")(waveform, 16_000)
    torch.testing.assert_close(clips, expected, atol=1e-4, rtol=1e-4)


TRANSFORMERS = ("--format", "transformers")


def test_a_folder_for_transformers_of_a_run(run, tmp_path, capsys):
    run_export(run, tmp_path / "out", *TRANSFORMERS)
    assert "AutoModel.from_pretrained" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_ajepa.py", "README.md"} < {
        path.name for path in (tmp_path / "out").iterdir()
    }
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["origin"]["digest"] == ajepa.load_encoder(run).about["digest"]
    run_export(run, tmp_path / "out", *TRANSFORMERS)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: choose another"):
        run_export(run, tmp_path / "out", "--branch", "context", *TRANSFORMERS)


def test_a_folder_for_transformers_of_a_fine_tuning(tmp_path, capsys):
    make_classifier(tmp_path / "tuned/seed-0-fold-1/model", multi_label=None)
    (tmp_path / "tuned/finetune.json").write_text(json.dumps({"metric": "mAP"}))  # as earlier versions left it
    (tmp_path / "tuned/seed-0-fold-1/result.json").write_text(json.dumps({"test": 0.8125, "probe": 0.75}))
    run_export(tmp_path / "tuned", tmp_path / "out", *TRANSFORMERS)
    assert "classifier of 3 labels" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "multi_label_classification"
    card = (tmp_path / "out/README.md").read_text()
    assert "mAP 0.812; the linear probe of the frozen encoder 0.750" in card
    run_export(tmp_path / "tuned", tmp_path / "out", *TRANSFORMERS)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="from the target encoder, not the context one"):
        run_export(tmp_path / "tuned", tmp_path / "out", "--branch", "context", *TRANSFORMERS)


def test_a_fine_tuning_of_several_models_is_to_be_named_one(tmp_path):
    for fold in (1, 2):
        make_classifier(tmp_path / f"tuned/seed-0-fold-{fold}/model")
    with pytest.raises(UserError, match=r"holds 2 fine-tuned models: name one, like .*tuned/seed-0-fold-1/model"):
        run_export(tmp_path / "tuned", tmp_path / "out", *TRANSFORMERS)
    assert not (tmp_path / "out/config.json").exists()


def test_an_export_is_not_exported_again(tmp_path):
    make_classifier(tmp_path / "model")
    with pytest.raises(UserError, match="is an export already: copy it, or name another --format"):
        run_export(tmp_path / "model", tmp_path / "out")


def test_weights_in_float16_are_half_as_large_and_loaded_in_float32(run, waveform, tmp_path, capsys):
    half, full = tmp_path / "half", tmp_path / "full"
    run_export(run, full)
    run_export(run, half, "--weights", "float16")
    sizes = [(folder / "encoder.safetensors").stat().st_size for folder in (half, full)]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    assert {v.dtype for v in load_file(half / "encoder.safetensors").values()} == {torch.float16}
    encoders = [ajepa.load_encoder(folder) for folder in (half, full)]
    assert {value.dtype for value in encoders[0].parameters()} == {torch.float32}
    vectors = [encoder(waveform, 16_000) for encoder in encoders]
    assert not torch.equal(*vectors)
    torch.testing.assert_close(*vectors, atol=5e-3, rtol=0)
    card = (half / "README.md").read_text()
    assert f"| digest of the encoder | {encoders[0].about['digest']} |" in card
    assert "| weights | rounded to float16 by" in card and "rounded to float16" not in (full / "README.md").read_text()
    capsys.readouterr()
    run_export(run, half, "--weights", "float16")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: choose another"):
        run_export(run, half)


def test_a_graph_never_writes_over_another(run, tmp_path):
    (tmp_path / "encoder.onnx").write_text("")
    with pytest.raises(UserError, match="exists: choose another"):
        run_export(run, tmp_path, "--format", "onnx")


@pytest.mark.parametrize("format", ["onnx", "transformers"])
def test_only_an_export_folder_is_a_model_for_mlflow(run, tmp_path, format):
    with pytest.raises(UserError, match="leave out --format"):
        run_export(run, tmp_path / "out", "--format", format, "--log-model", "on")
