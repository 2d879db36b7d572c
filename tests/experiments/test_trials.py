"""The path without Ray: trials are done once, killed at any time they go on, and a failing one fails alone."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.faults import ROOT
from helpers.runs import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from ajepa import storage
from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.experiments import __main__ as command
from ajepa.experiments import finetuned, runner, trial
from ajepa.experiments.probe_sets import ProbeSet, open_probes
from ajepa.experiments.results import read_results
from ajepa.experiments.trial import Trial, read_result, run_trial
from ajepa.finetuning import run as finetuning
from ajepa.finetuning.start import FromScratch
from ajepa.shards.dataset import open_dataset
from ajepa.training import loop

CPU = torch.device("cpu")


@pytest.fixture
def probe_set(small_dataset):
    return ProbeSet.of(small_dataset, "small")


@pytest.fixture
def tiny_nano(monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=3))


def arguments(small_dataset, tmp_path, *more: str) -> list[str]:
    return ["objective", "--data", small_dataset.path, "--output", str(tmp_path / "out"), "--protocol", "knn", *more]


def test_a_table_is_filled_resumed_and_widened(small_dataset, tmp_path, tiny_nano, monkeypatch, capsys):
    args = arguments(small_dataset, tmp_path, "--values", "jepa", "mae", "--seeds", "1")
    assert command.main(args) == 0
    shown = capsys.readouterr().out
    table = (tmp_path / "out/tables/objective-shards.md").read_text()
    assert table.startswith("**objective, probed on shards; differences to jepa**\n")
    assert table.strip() in shown and "| jepa | 1 |" in table and "| random init |" in table
    assert (tmp_path / "out/tables/objective-shards.csv").read_text().count("\n") == 5
    assert len(read_results(str(tmp_path / "out/results"))) == 4

    def fail(*args, **kwargs):
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr(trial, "train", fail)
        patch.setattr(trial, "probe", fail)
        assert command.main(args) == 0
        # Results known from elsewhere are not computed again, and stand in the table.
        elsewhere = arguments(small_dataset, tmp_path / "other", "--values", "jepa", "mae", "--seeds", "1")
        assert command.main([*elsewhere, "--results", str(tmp_path / "out/results")]) == 0
    assert (tmp_path / "other/out/tables/objective-shards.md").read_text() == table
    trained = []
    monkeypatch.setattr(
        trial, "train", lambda config, *rest: (trained.append(config.train.seed), loop.train(config, *rest))
    )
    assert command.main([*args[:-1], "2"]) == 0
    assert trained == [1, 1]
    assert "| jepa | 2 |" in (tmp_path / "out/tables/objective-shards.md").read_text()


def test_a_trial_that_was_killed_goes_on(small_dataset, probe_set, tmp_path, monkeypatch):
    """In its training, between training and probes, and between two probes: the result is that of a whole one."""
    wanted = Trial(PRETRAINED, tiny_config(), small_dataset.clips_hash)
    whole = run_trial(wanted, small_dataset, [probe_set], ["knn", "linear"], str(tmp_path / "whole"), CPU)
    folder = str(tmp_path / "killed")

    def go_on() -> dict:
        return run_trial(wanted, small_dataset, [probe_set], ["knn", "linear"], folder, CPU)

    with monkeypatch.context() as patch:
        append = trial.append_history
        patch.setattr(trial, "append_history", lambda run, reports: killed_at(4, reports) or append(run, reports))
        with pytest.raises(KeyboardInterrupt):
            go_on()
    assert read_result(folder) is None
    for calls in (0, 4):
        with monkeypatch.context() as patch:
            patch.setattr(trial, "probe", failing_after(calls, trial.probe))
            with pytest.raises(KeyboardInterrupt):
                go_on()
    assert {s["protocol"] for s in read_result(folder)["scores"]} == {"knn"}
    assert go_on()["scores"] == whole["scores"] and read_result(folder)["scores"] == whole["scores"]


def killed_at(step: int, reports: list[dict]) -> None:
    if reports[-1]["step"] >= step:
        raise KeyboardInterrupt


def failing_after(calls: int, work):
    made = []

    def counted(*args, **kwargs):
        made.append(1)
        if len(made) > calls:
            raise KeyboardInterrupt
        return work(*args, **kwargs)

    return counted


def test_one_failing_trial_fails_alone(small_dataset, tmp_path, tiny_nano, monkeypatch, capsys):
    def train(config, *rest):
        if config.train.objective == "mae":
            raise RuntimeError("out of memory")
        loop.train(config, *rest)

    monkeypatch.setattr(trial, "train", train)
    args = arguments(small_dataset, tmp_path, "--values", "mae", "jepa", "--seeds", "1")
    assert command.main(args) == 1
    found = capsys.readouterr()
    assert "failed: out of memory" in found.out and "1 trials failed" in found.err
    assert "| jepa | 1 |" in found.out and "| mae |" not in found.out


def test_baselines_are_those_of_the_probe(small_dataset, probe_set, tmp_path):
    config = tiny_config()
    of = {
        kind: run_trial(
            Trial(kind, config, small_dataset.clips_hash),
            small_dataset,
            [probe_set],
            ["knn"],
            str(tmp_path / kind),
            CPU,
        )
        for kind in (RANDOM, MEL)
    }
    assert [s["pooling"] for s in of[MEL]["scores"]] == ["mean", "mean+std"]
    assert len(of[RANDOM]["scores"]) == 3 and "loss" not in of[RANDOM]


@pytest.fixture
def short_recipes(monkeypatch):
    """Fine-tunings of one epoch."""
    for name in ("small-data", "from-scratch"):
        short = {"epochs": 1, "warmup_epochs": 0, "batch_size": 8}
        monkeypatch.setitem(finetuned.RECIPES, name, dataclasses.replace(finetuned.RECIPES[name], **short))


@pytest.mark.slow
def test_fine_tuned_encoders_stand_beside_the_supervised_baseline(
    small_dataset, tmp_path, tiny_nano, short_recipes, monkeypatch, capsys
):
    args = arguments(small_dataset, tmp_path, "--values", "jepa", "mae", "--seeds", "2", "--finetune")
    assert command.main(args) == 0
    table = (tmp_path / "out/tables/objective-shards.md").read_text()
    assert "| fine-tuned, bands mean+std | fine-tuned: difference (95%) | fine-tuned: verdict |" in table
    rows = {row.split(" | ")[0].removeprefix("| "): row.split(" | ") for row in table.splitlines()[4:]}
    column = table.splitlines()[2].split(" | ").index("fine-tuned, bands mean+std")
    assert {name for name, row in rows.items() if row[column] == "–"} == {"random init", "log-mel statistics"}
    assert rows.keys() >= {"jepa", "mae", "supervised"}
    assert rows["supervised"][column + 1][0] in "+-"  # its difference to the fine-tuned default
    assert not list((tmp_path / "out").rglob("model"))  # the models are not kept
    results = read_results(str(tmp_path / "out/results"))
    (supervised,) = [r for r in results.values() if r.identity["kind"] == "supervised"]
    assert [len(outcome["scores"]) for outcome in supervised.seeds.values()] == [1, 1]
    assert supervised.seeds[0]["scores"][0]["recipe"]["epochs"] == 1

    def fail(*args, **kwargs):
        raise AssertionError("done again")

    with monkeypatch.context() as patch:
        patch.setattr(trial, "fine_tune", fail)
        assert command.main(args) == 0
    longer = dataclasses.replace(finetuned.RECIPES["small-data"], epochs=2)
    monkeypatch.setitem(finetuned.RECIPES, "small-data", longer)
    again = arguments(small_dataset, tmp_path, "--values", "jepa", "--seeds", "1", "--finetune")
    assert command.main(again) == 0
    (jepa,) = [r for r in read_results(str(tmp_path / "out/results")).values() if r.name.startswith("jepa")]
    epochs = [s["recipe"]["epochs"] for s in jepa.seeds[0]["scores"] if s["protocol"] == "fine-tuned"]
    assert epochs == [2]  # another recipe takes the place of the old one


def test_a_fine_tuning_that_was_killed_goes_on(small_dataset, probe_set, tmp_path, short_recipes, monkeypatch):
    """In its third part: two are not trained again, and the result is that of a whole one."""
    wanted = Trial("supervised", tiny_config(), small_dataset.clips_hash)

    def go_on(name: str) -> dict:
        return run_trial(wanted, small_dataset, [probe_set], [], str(tmp_path / name), CPU)

    whole = go_on("whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train", failing_after(5, finetuning.train))  # two trainings a part: with the refit
        with pytest.raises(KeyboardInterrupt):
            go_on("killed")
    trained = []
    train = finetuning.train
    monkeypatch.setattr(finetuning, "train", lambda phase, *rest: (trained.append(phase.part), train(phase, *rest))[1])
    assert go_on("killed")["scores"] == whole["scores"]
    assert trained[0] == "seed-0-fold-3" and len(trained) == 6
    assert whole["scores"][0]["folds"] != [0.0] * 5 and len(whole["scores"][0]["folds"]) == 5


def test_a_fine_tuning_begun_by_another_recipe_is_not_gone_on_with(
    small_dataset, probe_set, tmp_path, short_recipes, monkeypatch
):
    wanted = Trial(PRETRAINED, tiny_config(), small_dataset.clips_hash)
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train", failing_after(5, finetuning.train))
        with pytest.raises(KeyboardInterrupt):
            run_trial(wanted, small_dataset, [probe_set], ["fine-tuned"], str(tmp_path), CPU)
    other = dataclasses.replace(finetuned.RECIPES["small-data"], encoder_lr=1e-4)
    monkeypatch.setitem(finetuned.RECIPES, "small-data", other)
    trained = []
    train = finetuning.train
    monkeypatch.setattr(finetuning, "train", lambda phase, *rest: (trained.append(phase.part), train(phase, *rest))[1])
    run_trial(wanted, small_dataset, [probe_set], ["fine-tuned"], str(tmp_path), CPU)
    assert trained[0] == "seed-0-fold-1" and len(trained) == 10


def test_results_in_the_output_that_cannot_be_read_are_refused_before_any_trial(
    small_dataset, tmp_path, tiny_nano, monkeypatch, capsys
):
    monkeypatch.setattr(trial, "train", lambda *_: pytest.fail("trained"))
    (tmp_path / "out/results").mkdir(parents=True)
    (tmp_path / "out/results/a.json").write_text('{"format_version": 1}')
    assert command.main(arguments(small_dataset, tmp_path, "--seeds", "1")) == 2
    assert "has results of format 1, this version reads 2" in capsys.readouterr().err
    assert not (tmp_path / "out/trials").exists()


@pytest.mark.slow
def test_the_cost_of_fine_tuning_is_that_of_its_trainings(probe_set, tmp_path):
    """Counted while it runs, with the tests of its models."""
    model = tiny_config().model
    recipe = dataclasses.replace(finetuned.recipe_of(model, from_scratch=True), epochs=2, warmup_epochs=1)
    recipe = dataclasses.replace(recipe, crop_frames=2 * model.crop_frames)
    with FlopCounterMode(display=False) as counter:
        finetuned.fine_tune(FromScratch(model), recipe, probe_set, str(tmp_path / "models"), CPU)
    told = finetuned.fine_tuning_flops(model, recipe, probe_set)
    assert 0.75 * told < counter.get_total_flops() < 1.25 * told


def test_a_dry_run_shows_trials_and_cost_and_writes_nothing(small_dataset, tmp_path, tiny_nano, capsys):
    assert command.main(["all", *arguments(small_dataset, tmp_path, "--dry-run")[1:]]) == 0
    shown = capsys.readouterr().out
    for part in (
        "objective, 3 steps:\n  jepa",
        "AudioSet-20K 37.2, ESC-50 90.2",
        "supervised         published, %: AudioSet-20K 35.0",
        "66 trainings and 7 baselines, 3 seeds; 0 done",
        "GPU-hours",
        "clips/s",
        "3 fine-tuned, on each probe set: ",
    ):
        assert part in shown, shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--seeds", "0"], "--seeds and --threads must be positive"),
        (["--values", "wav2vec"], "'wav2vec' is no value"),
        (["--output", "s3://bucket/x"], "--output is a local folder"),
        (["--probe-data", "/nowhere"], "/nowhere"),
        (["--results", "{damaged}"], "is damaged (it holds a list, not an object)"),
        (["--results", "/nowhere"], "'/nowhere' has no results"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(small_dataset, tmp_path, more, match, capsys):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/a.json").write_text("[]")
    more = [word.format(damaged=tmp_path / "damaged") for word in more]
    assert command.main(arguments(small_dataset, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_probe_data_of_another_front_end_is_refused(small_dataset, build_dataset, tmp_path, capsys):
    clips = [{"clip_id": "a", "uri": str(Path(small_dataset.path).parent / "clip00.wav"), "labels": [0], "fold": 1}]
    front_end = dataclasses.replace(small_dataset.front_end, n_mels=64)
    build_dataset(tmp_path / "other", clips, shard_size=1, front_end=front_end, label_names=small_dataset.label_names)
    assert command.main(arguments(small_dataset, tmp_path, "--probe-data", str(tmp_path / "other"))) == 2
    assert "have 64: preprocess them alike" in capsys.readouterr().err


def test_probe_sets_of_one_name_are_told_apart_and_the_same_clips_are_one(small_dataset, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(small_dataset.path, tmp_path / name / "shards")
    first, second = str(tmp_path / "a/shards"), str(tmp_path / "b/shards")
    assert [p.name for p in open_probes([first, second], small_dataset)] == ["shards"]
    about = tmp_path / "b/shards/dataset.json"
    about.write_text(about.read_text().replace("bird", "birds"))
    other = open_dataset(second).clips_hash
    names = [p.name for p in open_probes([first, second], small_dataset)]
    assert names == [f"shards-{small_dataset.clips_hash[:8]}", f"shards-{other[:8]}"]


def test_probes_made_later_leave_what_the_training_was_made_with(small_dataset, probe_set, tmp_path, monkeypatch):
    wanted = Trial(PRETRAINED, tiny_config(), small_dataset.clips_hash)
    first = run_trial(wanted, small_dataset, [probe_set], ["knn"], str(tmp_path), CPU)
    monkeypatch.setattr(trial, "describe_machine", lambda *_: {"commit": "later"})
    later = run_trial(wanted, small_dataset, [probe_set], ["knn", "linear"], str(tmp_path), CPU)
    assert later["machine"] == first["machine"] and len(later["scores"]) == 2 * len(first["scores"])


def test_two_commands_on_one_output_are_refused(tmp_path):
    first, second = command.held(tmp_path / "out"), command.held(tmp_path / "out")
    with first, pytest.raises(UserError, match="another process works on"), second:
        pass
    with command.held(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", ["ablation.json", f"{storage.LOCK}x"])
def test_a_folder_of_the_other_command_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds trials of pipelines/ablate.py"), command.held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.process
def test_the_command_imports_neither_ray_nor_mlflow(small_dataset, tmp_path):
    code = (
        "import sys; from ajepa.experiments.__main__ import main; code = main(sys.argv[1:]); "
        "print(code, {'ray', 'mlflow', 'matplotlib', 'torchaudio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(small_dataset, tmp_path, "--max-steps", "2", "--dry-run")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr


def test_a_result_says_how_it_was_made(small_dataset, probe_set, tmp_path):
    wanted = Trial(PRETRAINED, tiny_config(), small_dataset.clips_hash)
    run_trial(wanted, small_dataset, [probe_set], ["knn"], str(tmp_path), CPU)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"].keys() == {"device", "threads", "precision", "torch", "ajepa", "commit"}
    assert result["steps"] == 6 and result["flops_per_clip"] > 0 and result["verdict"]
    assert runner.summary(result).startswith("knn mean 0.")
