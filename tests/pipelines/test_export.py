"""export.py --format: one file for other runtimes, beside or instead of the folder that load_encoder reads."""

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.training_state import save_run

import ajepa
from ajepa.errors import UserError
from pipelines.cli.arguments import parse
from pipelines.export import ExportArgs
from pipelines.jobs import export

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
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["encoder.onnx"]
    assert "onnxruntime.InferenceSession" in capsys.readouterr().out
    clips, _ = onnxruntime.InferenceSession(tmp_path / "out/encoder.onnx").run(None, {"waveform": waveform})
    torch.testing.assert_close(torch.from_numpy(clips), ajepa.load_encoder(run)(waveform, 16_000), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_program_of_an_export_lies_beside_its_weights(run, waveform, tmp_path):
    run_export(run, tmp_path, "--branch", "context")
    run_export(tmp_path, tmp_path, "--branch", "context", "--format", "torch")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.json", "encoder.pt2", "encoder.safetensors"]
    clips, _ = torch.export.load(tmp_path / "encoder.pt2").module()(torch.from_numpy(waveform))
    expected = ajepa.load_encoder(run, "context")(waveform, 16_000)
    torch.testing.assert_close(clips, expected, atol=1e-4, rtol=1e-4)


def test_a_graph_never_writes_over_another(run, tmp_path):
    (tmp_path / "encoder.onnx").write_text("")
    with pytest.raises(UserError, match="exists: choose another"):
        run_export(run, tmp_path, "--format", "onnx")


def test_a_graph_is_no_model_for_mlflow(run, tmp_path):
    with pytest.raises(UserError, match="leave out --format"):
        run_export(run, tmp_path / "out", "--format", "onnx", "--log-model", "on")
