"""Tables from results: means, paired differences and their intervals, joined files."""

import json

import numpy as np
import pytest
from helpers.runs import tiny_config

from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.experiments import report
from ajepa.experiments.report import comma_separated, difference, lines_of, markdown
from ajepa.experiments.results import from_trials, joined, read_results, require_one_recipe, right_clips, write_results
from ajepa.experiments.settings import settings_of
from ajepa.experiments.trial import Trial

BASE, DATA, PROBE = tiny_config(), "data", "probe"
CLIPS = 200


def outcome(trial: Trial, right: np.ndarray | None, score: float | None = None) -> dict:
    """As run_trial returns it, of one probe."""
    bits = None if right is None else np.packbits(right).tobytes().hex()
    found = {
        "data": {"name": "set", "hash": PROBE, "clips": CLIPS}, "splits": "5 folds", "protocol": "linear",
        "pooling": "mean", "metric": "accuracy" if right is not None else "mAP", "validation": 0.5, "folds": [],
        "score": float(right.mean()) if score is None else score, "right": bits,
    }  # fmt: skip
    of_run = {"effective_rank": 10.0, "clips_per_second": 50.0, "flops_per_clip": 10**9, "steps": 6, "loss": 0.1}
    return {
        "kind": trial.kind, "key": trial.key, "name": trial.name, "identity": trial.identity, "seed": trial.seed,
        "scores": [found], **(of_run if trial.kind == PRETRAINED else {}),
    }  # fmt: skip


def trial(value: str | None, seed: int, kind=PRETRAINED) -> Trial:
    config = tiny_config(seed=seed)
    return Trial(kind, config if value is None else settings_of("loss", config, [value])[value], DATA)


def right_share(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(CLIPS) < share


@pytest.fixture
def results():
    """The default is right on 60%; mse on the same clips and 15% more; l1 on others of the same number."""
    trials = []
    for seed in range(3):
        base = right_share(0.6, seed)
        trials.append(outcome(trial("smooth_l1", seed), base))
        trials.append(outcome(trial("mse", seed), base | right_share(0.35, 10 + seed)))
        trials.append(outcome(trial("l1", seed), np.random.default_rng(seed).permutation(base)))
        trials.append(outcome(trial(None, seed, RANDOM), right_share(0.3, 20 + seed)))
    trials.append(outcome(trial(None, 0, MEL), right_share(0.4, 30)))
    return from_trials(trials)


def lines(results, seeds=range(3)):
    return {
        line.setting: line for line in lines_of("loss", settings_of("loss", BASE), BASE, results, DATA, PROBE, seeds)
    }


def test_rows_hold_means_differences_and_verdicts(results):
    found = lines(results)
    assert list(found) == ["smooth_l1", "l1", "mse", RANDOM, MEL]  # cosine has no result
    verdicts = {name: line.differences["linear"].verdict for name, line in found.items() if line.differences}
    assert verdicts == {"mse": "better", "l1": "level", RANDOM: "worse", MEL: "worse"}
    assert found["l1"].differences["linear"].mean == pytest.approx(0, abs=1e-9)
    assert [line.seeds for line in found.values()] == [3, 3, 3, 3, 1]
    text = markdown(list(found.values()))
    assert "| smooth_l1 | 3 | 0." in text and "better" in text and "± " in text
    assert "AudioSet-20K 37.2" in text and "knn" not in text
    rows = comma_separated(list(found.values())).splitlines()
    assert len(rows) == 6 and len({row.count(",") for row in rows if "Audio" not in row}) == 1


def test_a_paired_difference_is_narrower_than_that_of_other_clips(results):
    """What both settings are right on is no noise of their difference."""
    paired, unpaired = (lines(results)[name].differences["linear"] for name in ("mse", RANDOM))
    assert paired.low <= paired.mean <= paired.high and paired.high - paired.low < unpaired.high - unpaired.low


def test_the_interval_covers_a_true_difference(monkeypatch):
    """Two settings of the same clips, one 5% better: 95% intervals hold it in about 95 of 100 draws."""
    monkeypatch.setattr(report, "REPLICATES", 400)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(60):
        trials = []
        for seed in range(5):
            chance = rng.random(CLIPS)
            trials.append(outcome(trial("smooth_l1", seed), chance < 0.60))
            trials.append(outcome(trial("l1", seed), rng.random(CLIPS) < 0.65))
        found = from_trials(trials)
        keys = [trial(value, 0).key for value in ("l1", "smooth_l1")]
        gap = difference(found[keys[0]], found[keys[1]], PROBE, "linear", range(5))
        covered += gap.low <= 0.05 <= gap.high
    assert covered >= 53


def test_of_multi_label_sets_seeds_alone_are_drawn():
    trials = [
        outcome(trial(v, seed), None, 0.3 + 0.1 * (v == "l1") + 0.001 * seed)
        for v in ("smooth_l1", "l1")
        for seed in range(3)
    ]
    gap = lines(from_trials(trials))["l1"].differences["linear"]
    assert gap.mean == pytest.approx(0.1) and gap.verdict == "better"


def test_the_interval_of_few_seeds_has_the_variance_between_them():
    """Of three the same seed is drawn three times in 1 of 27 draws: that is where the 95% interval ends."""
    trials = [
        outcome(trial(v, seed), None, 0.3 + 0.1 * (v == "l1") * (seed + 1))
        for v in ("smooth_l1", "l1")
        for seed in range(3)
    ]
    gap = lines(from_trials(trials))["l1"].differences["linear"]
    assert gap.mean == pytest.approx(0.2)
    assert [gap.low, gap.high] == pytest.approx([0.2 - 0.1 * 1.5**0.5, 0.2 + 0.1 * 1.5**0.5])


def test_of_one_seed_clips_alone_are_drawn(results):
    gap = lines(results, seeds=[1])["mse"].differences["linear"]
    assert gap.low < gap.mean < gap.high


@pytest.mark.parametrize("recipes", [({"lr": 1}, {"lr": 2}), (None, {"lr": 1})])
def test_two_recipes_of_one_fine_tuning_are_refused(recipes):
    def folder(recipe):
        found = outcome(trial("l1", 0), right_share(0.5, 0))
        found["scores"][0]["recipe"] = recipe
        return from_trials([found])

    old, new = map(folder, recipes)
    require_one_recipe({"old": old, "new": folder(recipes[0])})
    with pytest.raises(UserError, match=r"by one recipe in 'old' and by another in 'new': remove the older"):
        require_one_recipe({"old": old, "new": new})


def test_bits_are_those_of_the_clips():
    right = right_share(0.5, 0)
    found = outcome(trial("l1", 0), right)["scores"][0]
    assert (right_clips(found) == right).all() and len(found["right"]) == CLIPS / 4


def test_files_of_different_days_add_up(results, tmp_path):
    keys = sorted(results)
    early = {key: results[key] for key in keys[:3]}
    write_results(early, str(tmp_path / "one"))
    write_results({keys[0]: results[keys[0]], **{key: results[key] for key in keys[3:]}}, str(tmp_path / "two"))
    again = joined([read_results(str(tmp_path / "one")), read_results(str(tmp_path / "two"))])
    assert again == results
    assert read_results(str(tmp_path / "nowhere")) == {}
    first = next((tmp_path / "one").iterdir())
    content = json.loads(first.read_text())
    first.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(UserError, match="has results of format 99, this version reads 2"):
        read_results(str(tmp_path / "one"))
    first.write_text("{")
    with pytest.raises(UserError, match=r"is damaged .*: restore or delete it"):
        read_results(str(tmp_path / "one"))


def test_other_probes_of_a_seed_are_joined():
    one = outcome(trial("l1", 0), right_share(0.5, 0))
    other = json.loads(json.dumps(one))
    other["scores"][0]["protocol"] = "knn"
    (result,) = joined([from_trials([one]), from_trials([other])]).values()
    assert [score["protocol"] for score in result.seeds[0]["scores"]] == ["linear", "knn"]
