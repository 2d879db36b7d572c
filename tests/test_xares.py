"""X-ARES: its own checker, the way its runner finds an encoder, and the hop it is told."""

import importlib.util

import pytest
import torch
from helpers.training_state import save_run

from ajepa import xares as wrapper
from ajepa.errors import UserError

NAME = "ajepa/xares.py"
needs_xares = pytest.mark.skipif(
    importlib.util.find_spec("xares") is None,
    reason="the tools of the extra eval are not installed: make test-eval",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset):
    path = tmp_path_factory.mktemp("xares")
    save_run(path, small_dataset, 1)
    return str(path)


@pytest.mark.evaluation
@needs_xares
@pytest.mark.parametrize("options", [{}, {"hop_ms": 160, "bands": "concat"}])
def test_the_checker_passes(run, options):
    from xares.audio_encoder_checker import check_audio_encoder

    assert check_audio_encoder(wrapper.AJEPAEncoder(run, **options)) is True


@pytest.mark.evaluation
@needs_xares
def test_its_runner_finds_the_encoder(run, monkeypatch):
    from xares.utils import attr_from_py_path

    monkeypatch.setenv("AJEPA_ENCODER", run)
    encoder = attr_from_py_path(NAME, endswith="Encoder")()
    assert isinstance(encoder, wrapper.AJEPAEncoder)


@pytest.mark.parametrize("hop_ms", [160, 40])
def test_the_hop_is_the_time_between_vectors(run, hop_ms):
    encoder = wrapper.AJEPAEncoder(run, hop_ms=hop_ms)
    vectors = encoder(torch.rand(2, 160_000) - 0.5)
    assert vectors.shape[0] == 2 and vectors.shape[2] == encoder.output_dim
    assert abs(vectors.shape[1] * encoder.hop_size_in_ms - 10_000) <= 160


def test_no_path_is_named(monkeypatch):
    monkeypatch.delenv("AJEPA_ENCODER", raising=False)
    with pytest.raises(UserError, match="set AJEPA_ENCODER"):
        wrapper.AJEPAEncoder()


def test_an_encoder_that_comes_with_the_package_is_taken_by_its_name(monkeypatch):
    monkeypatch.setenv("AJEPA_ENCODER", "nano")
    assert wrapper.AJEPAEncoder().output_dim == 192
