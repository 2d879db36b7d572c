"""load_encoder and export_encoder: from a run, a checkpoint or an export to the same encoder."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from helpers.training_state import MODEL, save_run

import ajepa
from ajepa import storage
from ajepa.audio.statistics import Statistics
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference.pretrained import export_encoder, random_encoder, round_weights

STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_dataset):
    """A run of one step. Read only."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, small_dataset, 1)
    return folder


def test_three_lines_from_a_run_to_a_vector(run, tmp_path):
    soundfile.write(tmp_path / "dog.wav", noise(2.0), 16_000)

    encoder = ajepa.load_encoder(run)
    waveform, sample_rate = soundfile.read(tmp_path / "dog.wav")
    vector = encoder(waveform, sample_rate)

    assert vector.shape == (1, encoder.width) and torch.isfinite(vector).all()


def test_both_branches_load_and_differ(run):
    target, context = (ajepa.load_encoder(str(run), branch) for branch in ("target", "context"))
    assert not torch.equal(target.encoder.patch_embed.weight, context.encoder.patch_embed.weight)
    assert not any(p.requires_grad for p in target.parameters())


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ajepa.load_encoder(str(tmp_path / "nothing"))


def test_random_encoders_of_other_seeds_differ():
    a, b = (random_encoder(MODEL, seed, FrontEndConfig(), STATISTICS) for seed in (0, 1))
    assert not torch.equal(a.encoder.patch_embed.weight, b.encoder.patch_embed.weight)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """(run, export) of a run of one step. Read only."""
    export = tmp_path_factory.mktemp("exported") / "export"
    export_encoder(str(run), str(export))
    return run, export


@pytest.fixture
def export(exported, tmp_path):
    """A copy of the export for each test."""
    return shutil.copytree(exported[1], tmp_path / "export")


def test_an_export_gives_the_embeddings_of_its_run(exported):
    vectors = [ajepa.load_encoder(path).clip_embeddings(noise(2.0), 16_000) for path in exported]
    assert torch.equal(*vectors)


def test_a_digest_is_that_of_the_weights_not_of_their_place(exported):
    digests = {ajepa.load_encoder(path).about["digest"] for path in exported}
    assert len(digests) == 1
    assert ajepa.load_encoder(exported[0], "context").about["digest"] not in digests


def test_an_export_of_another_version_says_what_to_do(export):
    about = export / "encoder.json"
    about.write_text(about.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(UserError, match="has export format 1, this version reads 2: export the run again"):
        ajepa.load_encoder(export)


def test_bf16_is_close_and_gives_float32(exported):
    exact, rounded = (ajepa.load_encoder(exported[0], precision=p)(noise(2.0), 16_000) for p in ("fp32", "bf16"))
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.05)


def test_an_export_holds_one_encoder_and_no_optimizer(exported):
    assert sorted(p.name for p in exported[1].iterdir()) == ["README.md", "encoder.json", "encoder.safetensors"]
    sizes = [sum(p.stat().st_size for p in path.rglob("*.safetensors")) for path in exported]
    assert sizes[1] < sizes[0] / 3


def test_weights_that_float16_cannot_hold_are_refused(run):
    encoder = ajepa.load_encoder(run)
    encoder.encoder.patch_embed.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"patch_embed\.weight has values above 65504; export it as float32"):
        round_weights(encoder)


def test_an_export_of_the_other_branch_is_refused(exported):
    with pytest.raises(UserError, match="holds the target encoder, not the context"):
        ajepa.load_encoder(exported[1], "context")


def test_a_damaged_export_is_refused(export):
    weights = export / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="does not match its digest"):
        ajepa.load_encoder(export)


def test_an_export_never_writes_over_anything(exported):
    with pytest.raises(UserError, match="exists: choose another"):
        export_encoder(str(exported[0]), str(exported[1]))


@pytest.mark.parametrize("file", ["encoder.safetensors", "encoder.json"])
def test_an_export_that_was_killed_is_written_anew(run, exported, tmp_path, monkeypatch, file):
    def kill(path):
        if path.endswith(f"/{file}"):
            raise KeyboardInterrupt
        return write(path)

    write, output = storage.atomic_output, tmp_path / "export"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "atomic_output", kill)
        with pytest.raises(KeyboardInterrupt):
            export_encoder(str(run), str(output), "context")
    assert not (output / "encoder.json").exists() and list(output.iterdir())
    export_encoder(str(run), str(output))
    assert {p.name: p.read_bytes() for p in output.iterdir()} == {p.name: p.read_bytes() for p in exported[1].iterdir()}


def test_weights_that_no_export_left_are_not_written_over(run, tmp_path):
    (tmp_path / "encoder.safetensors").write_bytes(b"of somebody else")
    with pytest.raises(UserError, match="exists: choose another"):
        export_encoder(str(run), str(tmp_path))
    assert (tmp_path / "encoder.safetensors").read_bytes() == b"of somebody else"
