"""The exported graphs compute what AudioEncoder does, from one file, for every batch size and duration."""

import json
import sys

import numpy as np
import pytest
import torch
from helpers.training_state import MODEL

from ajepa.audio.decode import decode
from ajepa.audio.logmel import LogMel
from ajepa.audio.statistics import Statistics
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference import graph
from ajepa.inference.graph import ABOUT, EncoderGraph, LogMelGraph, describe_graph, export_onnx, save_program
from ajepa.inference.pretrained import random_encoder

pytestmark = [
    pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 exports graphs of fixed sizes alone"),
    pytest.mark.slow,
    pytest.mark.xdist_group("graph"),  # its imports take ten seconds
]
SHAPES = [(1, 0.025), (2, 0.5), (1, 1.28), (3, 1.28), (1, 2.56), (2, 3.3), (4, 3.3), (1, 10.0)]  # clips, seconds


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(MODEL, 0, FrontEndConfig(), Statistics(np.full(128, -4.0), np.full(128, 3.0), 1))


def noise(clips: int, seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(clips, round(seconds * 16_000), generator=torch.Generator().manual_seed(0))


def assert_parity(encoder, waveform: torch.Tensor, outputs) -> None:
    """Within 1e-4 of the largest entry."""
    frames = encoder.frame_embeddings(waveform, 16_000).embeddings
    for expected, got in zip((encoder(waveform, 16_000), frames), outputs, strict=True):
        assert got.shape == expected.shape
        assert (torch.as_tensor(got) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def traced(encoder):
    """What both files are written of, traced once: tracing takes most of the time of an export."""
    program = graph.export_program(encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "export_program", lambda _: program)
        yield


@pytest.fixture(scope="module")
def program_file(traced, encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "encoder.pt2"
    save_program(encoder, str(path))
    return path


@pytest.fixture(scope="module")
def session(traced, encoder, tmp_path_factory):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export_onnx(encoder, str(path))
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def program(program_file):
    return torch.export.load(program_file).module()


@pytest.mark.parametrize(("clips", "seconds"), SHAPES)
def test_onnx_equals_the_encoder(encoder, session, clips, seconds):
    waveform = noise(clips, seconds)
    assert_parity(encoder, waveform, session.run(None, {"waveform": waveform.numpy()}))


@pytest.mark.parametrize(("clips", "seconds"), SHAPES)
def test_the_exported_program_equals_the_encoder(encoder, program, clips, seconds):
    waveform = noise(clips, seconds)
    assert_parity(encoder, waveform, program(waveform))


def test_every_number_of_columns_and_rest_of_frames_equals_the_encoder(encoder):
    eager = EncoderGraph(encoder)
    for frames in [*range(3, 60, 5), *range(120, 600, 37)]:
        waveform = noise(1, frames / 100)
        assert_parity(encoder, waveform, eager(waveform))


def test_onnx_equals_the_encoder_on_recordings(encoder, session, esc10):
    for path in sorted((esc10 / "audio").iterdir())[:8]:
        waveform = torch.from_numpy(decode(str(path), 16_000).waveform)[None]
        assert_parity(encoder, waveform, session.run(None, {"waveform": waveform.numpy()}))


@pytest.mark.parametrize("n_fft", [400, 512, 513])
def test_the_dft_as_a_convolution_equals_the_front_end(n_fft):
    config = FrontEndConfig(n_fft=n_fft, n_mels=64)
    waveform = noise(2, 0.7)
    torch.testing.assert_close(LogMelGraph(config)(waveform), LogMel(config)(waveform), atol=1e-4, rtol=1e-4)


def test_both_files_say_their_rate_times_and_origin(encoder, session, program_file):
    about = describe_graph(encoder)
    assert about["ajepa.sample_rate"] == "16000" and about["ajepa.digest"] == encoder.about["digest"]
    assert (about["ajepa.frame_hop_ms"], about["ajepa.first_frame_ms"]) == ("160.0", "75.0")
    times = encoder.frame_embeddings(noise(1, 1.28), 16_000).timestamps
    assert times[:2].tolist() == [75.0, 235.0]
    extra = {ABOUT: ""}
    torch.export.load(program_file, extra_files=extra)
    assert json.loads(extra[ABOUT]) == about == session.get_modelmeta().custom_metadata_map


def test_the_names_of_the_onnx_graph(session):
    assert session.get_inputs()[0].shape == ["batch", "samples"]
    assert [(o.name, o.shape[:-1]) for o in session.get_outputs()] == [
        ("clip_embeddings", ["batch"]),
        ("frame_embeddings", ["batch", "columns"]),
    ]


def test_a_program_refuses_less_than_a_window(program):
    with pytest.raises((AssertionError, RuntimeError), match="400"):
        program(torch.zeros(1, 399))


def test_onnx_without_its_packages_says_what_to_install(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'ajepa\[onnx\]'"):
        export_onnx(encoder, str(tmp_path / "encoder.onnx"))
    assert not list(tmp_path.iterdir())
