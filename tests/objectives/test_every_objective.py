"""What holds of every objective: where gradients go, how it starts, resumes, reports, and what of it is loaded."""

import dataclasses
import json
from typing import get_args

import pytest
import torch
from helpers.runs import LOOP_CONFIG
from helpers.training_state import MODEL, make_inputs, make_state, save_run

import ajepa
from ajepa.checkpoints import read_info
from ajepa.choices import ObjectiveName
from ajepa.config import Config, TrainConfig
from ajepa.errors import UserError
from ajepa.objectives.registry import OBJECTIVES, build_objective
from ajepa.shards.dataset import open_dataset
from ajepa.training import loop
from ajepa.training.snapshot import resume
from ajepa.training.step import train_step
from ajepa.training.worker import WorkerHooks

WITH_TEACHER = {"jepa", "m2d", "eat"}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def build(name: str, **train):
    return build_objective(Config(model=MODEL, train=TrainConfig(objective=name, **train)))


def test_the_registry_holds_the_names_that_commands_take():
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))
    with pytest.raises(UserError, match=r"objective is one of jepa, mae, .*, not 'wav2vec'"):
        TrainConfig(objective="wav2vec")


@every_objective
def test_every_trained_parameter_has_a_gradient_and_no_other(name):
    state = make_state(objective=name)
    train_step(state, make_inputs(state))
    trained = dict(state.core.trained_parameters())
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    others = {n for n, p in state.core.named_parameters() if n not in trained and p.grad is not None}
    assert others == set()
    assert state.core.has_teacher == (name in WITH_TEACHER)
    assert all(n.startswith("target_encoder.") for n, _ in state.core.named_parameters() if n not in trained)


@every_objective
def test_encoders_of_all_objectives_start_from_the_same_weights(name):
    encoder, other = build("jepa", seed=3).encoder.state_dict(), build(name, seed=3).encoder.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in encoder.items())


@every_objective
def test_the_loss_falls(name):
    state = make_state(objective=name, warmup_epochs=0, lr=3e-3)
    losses = [float(train_step(state, make_inputs(state, i % 2)).loss) for i in range(24)]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])


@every_objective
def test_half_precision_stays_close(name):
    states = [make_state(objective=name, precision=precision) for precision in ("fp32", "bf16")]
    losses = [float(train_step(state, make_inputs(state)).loss) for state in states]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@every_objective
def test_errors_metrics_and_report_are_finite(name):
    state = make_state(objective=name, masks_per_clip=2)
    result = train_step(state, make_inputs(state), metrics=True)
    assert result.metrics and all(torch.isfinite(value) and value.ndim == 0 for value in result.metrics.values())
    assert (result.ema is not None) == (name in WITH_TEACHER)
    inputs = make_inputs(state)
    output = state.core(state.normalise(inputs.log_mel), inputs.context, inputs.targets)
    assert output.errors.shape == inputs.targets.shape and not output.errors.requires_grad
    assert torch.isfinite(output.errors).all()


def test_the_perplexity_of_codes_is_between_one_and_their_number():
    state = make_state(objective="beats")
    metrics = train_step(state, make_inputs(state), metrics=True).metrics
    assert 1 < metrics["code_perplexity"] <= 1024 and 0 <= metrics["code_accuracy"] <= 1
    silent = make_inputs(state, 1)
    silent.log_mel[:] = 0.0
    assert train_step(state, silent, metrics=True).metrics["code_perplexity"] == pytest.approx(1)


@every_objective
def test_a_resumed_run_ends_with_the_same_weights(name, small_dataset, tmp_path):
    whole = save_run(tmp_path, small_dataset, 2, objective=name)
    resumed = make_state(objective=name)
    assert resume(str(tmp_path), resumed).step == 2
    for state in (whole, resumed):
        for step in (2, 3):
            train_step(state, make_inputs(state, step))
    first, second = (state.core.state_dict() for state in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_objective
def test_a_run_is_watched_loaded_and_exported(name, small_dataset, tmp_path):
    """From a training loop to an encoder: the default branch is the one that the objective evaluates."""
    config = dataclasses.replace(LOOP_CONFIG, train=dataclasses.replace(LOOP_CONFIG.train, objective=name))
    reports: list[dict] = []
    hooks = WorkerHooks(0, 1, torch.device("cpu"), reports.append)
    loop.train(config, open_dataset(small_dataset.path), str(tmp_path / "run"), hooks)
    last = reports[-1]
    assert "verdict" in last and last["mfu"] > 0 and set(last["averaged"]) <= set(last)
    evaluated = OBJECTIVES[name].evaluated
    encoder = ajepa.load_encoder(str(tmp_path / "run"))
    assert (encoder.about["objective"], encoder.about["branch"]) == (name, evaluated)
    exported = ajepa.export_encoder(str(tmp_path / "run"), str(tmp_path / "export"))
    assert (exported["objective"], exported["branch"]) == (name, evaluated)
    again = ajepa.load_encoder(str(tmp_path / "export"))
    assert again.about["digest"] == encoder.about["digest"]
    if name in WITH_TEACHER:
        assert ajepa.load_encoder(str(tmp_path / "run"), "target").about["branch"] == "target"
    else:
        with pytest.raises(UserError, match=f"has no target encoder: {name} trains without one"):
            ajepa.load_encoder(str(tmp_path / "run"), "target")


@every_objective
def test_a_checkpoint_names_its_objective(name, small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 1, objective=name)
    assert read_info(str(tmp_path / "checkpoints/step-00000001")).config.train.objective == name


def test_checkpoints_of_earlier_versions_are_those_of_jepa(small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 1)
    manifest = tmp_path / "checkpoints/step-00000001/checkpoint.json"
    described = json.loads(manifest.read_text())
    del described["config"]["train"]["objective"]
    manifest.write_text(json.dumps(described))
    assert read_info(str(manifest.parent)).config.train.objective == "jepa"
    assert ajepa.load_encoder(str(tmp_path)).about["branch"] == "target"


def test_a_run_of_another_objective_is_not_resumed(small_dataset, tmp_path):
    save_run(tmp_path, small_dataset, 1, objective="mae")
    with pytest.raises(UserError):
        resume(str(tmp_path), make_state(objective="jepa"))


def test_the_teacher_of_m2d_takes_patch_embedding_and_positions_as_they_are():
    model = build("m2d")
    with torch.no_grad():
        for parameter in model.context_encoder.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    model.end_step(0.75)
    for name, value in model.target_encoder.state_dict().items():
        copied = name == "positions" or name.startswith("patch_embed.")
        torch.testing.assert_close(value, before[name] + (1.0 if copied else 0.25), msg=name)
