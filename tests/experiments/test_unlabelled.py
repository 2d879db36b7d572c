"""Probe sets with clips that have no label: what a command is told of them, and that results do not mix."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import tiny_config

from ajepa.config import PRESETS
from ajepa.evaluation.comparison import MEL
from ajepa.experiments import __main__ as command
from ajepa.experiments import finetuned, runner
from ajepa.experiments.probe_sets import ProbeSet
from ajepa.experiments.results import read_results
from ajepa.experiments.trial import Trial, is_done, run_trial

CPU = torch.device("cpu")
EVERY = 5  # clip has no label


@pytest.fixture(scope="module")
def build(small_dataset, build_dataset, tmp_path_factory):
    """A dataset of the small one's sounds, each fifth without a label; clips may have two labels, or one."""

    def make(several: bool):
        waves = sorted(Path(small_dataset.path).parent.glob("*.wav"))
        labels = [[] if i % EVERY == 0 else [i % 4, 4] if several else [i % 4] for i in range(len(waves))]
        clips = [
            {"clip_id": wave.stem, "uri": str(wave), "fold": 1 + i // 4 % 5, "labels": labels[i]}
            for i, wave in enumerate(waves)
        ]
        return build_dataset(
            tmp_path_factory.mktemp("some") / "sounds", clips, shard_size=20, front_end=small_dataset.front_end,
            label_names=["a", "b", "c", "d", "e"],
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def one_label(build):
    return build(several=False)


@pytest.fixture(scope="module")
def several_labels(build):
    return build(several=True)


@pytest.fixture(autouse=True)
def _tiny_nano(monkeypatch):
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=2))


def fill(dataset, output, *more: str) -> int:
    argv = ["loss", "--values", "l1", "--data", dataset.path, "--output", str(output), "--protocol", "knn"]
    return command.main([*argv, "--seeds", "1", *more])


def test_the_advice_of_the_refusal_works(one_label, tmp_path, capsys):
    assert fill(one_label, tmp_path / "out") == 2
    assert "8 of 40 clips" in (error := capsys.readouterr().err) and "--unlabelled drop leaves them out" in error
    assert not (tmp_path / "out").exists()
    assert fill(one_label, tmp_path / "out", "--unlabelled", "drop") == 0
    assert (tmp_path / "out/tables/loss-sounds-labelled.md").exists()
    for result in read_results(str(tmp_path / "out/results")).values():
        for score in result.seeds[0]["scores"]:
            assert score["data"]["clips"] == 32 and "8 clips without a label left out" in score["splits"]


def test_ablate_has_the_option_too(one_label, tmp_path, monkeypatch, capsys):
    from pipelines import ablate

    monkeypatch.chdir(tmp_path)
    argv = ["loss", "--data", one_label.path, "--output", "out", "--seeds", "1", "--dry-run"]
    ablate.main(ablate.parse_args([*argv, "--unlabelled", "drop"]))
    assert "0 done already" in capsys.readouterr().out


def test_scores_of_all_clips_and_of_labelled_ones_do_not_mix(several_labels, tmp_path):
    """Where clips may have several labels both can be asked for, in one output."""
    assert fill(several_labels, tmp_path) == 0
    assert fill(several_labels, tmp_path, "--unlabelled", "negative") == 0
    (all_clips,) = {s["data"]["hash"] for s in scores(tmp_path)}
    assert all_clips == several_labels.clips_hash
    assert fill(several_labels, tmp_path, "--unlabelled", "drop") == 0
    assert {(s["data"]["name"], s["data"]["clips"]) for s in scores(tmp_path)} == {
        ("sounds", 40), ("sounds-labelled", 32),
    }  # fmt: skip
    assert len({s["data"]["hash"] for s in scores(tmp_path)}) == 2
    assert {path.stem for path in (tmp_path / "tables").glob("*.md")} == {"loss-sounds", "loss-sounds-labelled"}


def scores(output: Path) -> list[dict]:
    results = read_results(str(output / runner.RESULTS)).values()
    return [score for result in results for outcome in result.seeds.values() for score in outcome["scores"]]


def test_where_every_clip_has_a_label_the_option_changes_no_name(small_dataset):
    sets = [ProbeSet.of(small_dataset, "small", how) for how in ("auto", "drop", "refuse")]
    assert {(s.name, s.hash, s.unlabelled) for s in sets} == {("small", small_dataset.clips_hash, "auto")}


def test_a_fine_tuning_leaves_the_same_clips_out(one_label, tmp_path, monkeypatch):
    recipe = dataclasses.replace(finetuned.RECIPES["from-scratch"], epochs=1, warmup_epochs=0, batch_size=8)
    monkeypatch.setitem(finetuned.RECIPES, "from-scratch", recipe)
    wanted, probe_set = Trial("supervised", tiny_config(), one_label.clips_hash), ProbeSet.of(one_label, "one", "drop")
    result = run_trial(wanted, one_label, [probe_set], [], str(tmp_path), CPU)
    (score,) = result["scores"]
    assert score["data"]["clips"] == 32 and score["recipe"]["unlabelled"] == "drop"
    assert is_done(result, wanted, [probe_set], [])


def test_the_key_of_a_trial_does_not_know_the_option(one_label, several_labels):
    assert (
        Trial(MEL, tiny_config(), one_label.clips_hash).key == Trial(MEL, tiny_config(), several_labels.clips_hash).key
    )
    supervised = Trial("supervised", tiny_config(), "hash")
    assert supervised.identity["config"]["finetune"]["unlabelled"] == "auto"


def test_probes_of_labelled_clips_have_their_rows(one_label, tmp_path):
    probe_set = ProbeSet.of(one_label, "one", "drop")
    tested = np.sort(np.concatenate([part.test for part in probe_set.splits.parts]))
    assert tested.tolist() == [i for i in range(40) if i % EVERY]
