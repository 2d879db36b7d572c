"""What tables compare, and that the write-up's own rows are those of `base`."""

import dataclasses

import pytest
from helpers.runs import tiny_config

from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.experiments.plan import make_plan
from ajepa.experiments.settings import ALL, TABLES, default_of, expand, settings_of
from ajepa.experiments.trial import Trial
from ajepa.training.flops import step_flops


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_its_default_and_different_settings(name, preset):
    base = PRESETS[preset]
    configs = settings_of(name, base)
    assert len({c.to_json() for c in configs.values()}) == len(configs) >= 2
    assert configs[default_of(configs, base)] == base


@pytest.mark.parametrize("name", [name for name in ALL if name != "objective"])
def test_base_has_the_rows_of_the_write_up(name):
    published = TABLES[name].published
    assert published and set(published) <= set(settings_of(name, PRESETS["base"]))


def test_rows_of_other_presets_scale():
    assert tuple(settings_of("predictor", PRESETS["base"])) == ("2x384", "4x384", "6x384", "8x384", "6x768")
    assert tuple(settings_of("predictor", PRESETS["nano"])) == ("1x96", "2x96", "3x96", "2x192")
    assert tuple(settings_of("target_layers", PRESETS["nano"])) == ("1", "2", "4")
    assert "random" in settings_of("masking_strategy", PRESETS["nano"])


def test_methods_have_their_objective_and_masks():
    configs = settings_of("objective", PRESETS["nano"])
    assert {name: config.train.objective for name, config in configs.items()} == {
        "jepa": "jepa", "mae": "mae", "maskspec": "mae", "ssast": "ssast", "beats": "beats", "m2d": "m2d", "eat": "eat",
        "lejepa": "lejepa",
    }  # fmt: skip
    assert (configs["mae"].mask.strategy, configs["mae"].mask.mask_ratio) == ("random", 0.8)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("masking_ratio", ["0.5", "half"], "'half' is no value for the table masking_ratio"),
        ("masking_ratio", ["1.5"], "is not between 0 and 1"),
        ("masking_ratio", ["0.5", "0.5"], "the same setting twice"),
        ("masking_strategy", ["blobs"], "strategy is one of"),
        ("predictor", ["2"], "'2' is no value for the table predictor"),
        ("predictor", ["2x100"], "not divisible by 3 heads"),
        ("loss", ["l3"], "loss is one of"),
        ("target_layers", ["9"], "exceeds the encoder's 4 layers"),
        ("objective", ["wav2vec"], "'wav2vec' is no value for the table objective: one of jepa, mae"),
    ],
)
def test_values_that_do_not_fit_are_refused(name, values, match):
    with pytest.raises(UserError, match=match):
        settings_of(name, PRESETS["nano"], values)


def test_all_are_the_tables_of_the_write_up():
    assert expand(["all", "placement", "loss"]) == (*ALL, "placement")
    with pytest.raises(UserError, match="unknown table 'speed': choose from objective, "):
        expand(["speed"])


def test_a_setting_of_several_tables_is_trained_once():
    base = tiny_config()
    plan = make_plan(["all"], base, "hash", range(2))
    keys = [(trial.key, trial.seed) for trial in plan.trials]
    assert len(set(keys)) == len(keys)
    default = Trial(PRETRAINED, base, "hash")
    assert sum(trial.key == default.key for trial in plan.trials) == 2  # a seed each
    settings = sum(len(configs) for configs in plan.tables.values())
    assert [t.kind for t in plan.trials].count("supervised") == 2
    assert len([t for t in plan.trials if t.kind == PRETRAINED]) == 2 * (settings - len(plan.tables) + 1)
    assert [t.kind for t in plan.trials].count(RANDOM) == 2 and [t.kind for t in plan.trials].count(MEL) == 1
    assert [t.seed for t in plan.trials if t.kind == PRETRAINED] == sorted(
        t.seed for t in plan.trials if t.kind == PRETRAINED
    )


def test_the_key_of_a_trial_is_that_of_what_changes_its_weights():
    base = tiny_config()

    def key(kind=PRETRAINED, data="hash", **train):
        return Trial(kind, dataclasses.replace(base, train=dataclasses.replace(base.train, **train)), data).key

    assert key() == key(seed=5) == key(log_every=1, eval_every=1, checkpoint_every=1, micro_batch=3)
    assert len({key(), key(lr=1.0), key(objective="mae"), key(max_steps=7), key(data="other"), key(RANDOM)}) == 6
    assert key(RANDOM) == key(RANDOM, lr=1.0) and key(MEL) == key(MEL, data="other")


def test_the_supervised_baseline_stands_beside_fine_tuned_encoders_and_all_objectives():
    def kinds(names, **more):
        return {trial.kind for trial in make_plan(names, tiny_config(), "hash", [0], **more).trials}

    assert "supervised" in kinds(["objective"]) & kinds(["loss"], finetune=True)
    assert "supervised" not in kinds(["loss"]) | kinds(["objective"], values=["jepa", "mae"])


def test_equal_compute_gives_cheap_objectives_more_steps():
    base = tiny_config(max_steps=100)
    (configs,) = make_plan(["objective"], base, "hash", [0], equal_compute=True).tables.values()
    work = {name: step_flops(config) * config.train.max_steps for name, config in configs.items()}
    assert configs["mae"].train.max_steps > 100 > configs["ssast"].train.max_steps
    assert all(w == pytest.approx(work["jepa"], rel=0.02) for w in work.values())
    with pytest.raises(UserError, match="--equal-compute needs --max-steps"):
        make_plan(["objective"], PRESETS["base"], "hash", [0], equal_compute=True)


def test_plans_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="--values are those of one table"):
        make_plan(["loss", "objective"], tiny_config(), "hash", [0], values=["l1"])
    with pytest.raises(UserError, match="--seeds must be positive"):
        make_plan(["loss"], tiny_config(), "hash", [])
