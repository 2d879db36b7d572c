"""--config: a run's own settings, or a part of them, as the start of another command."""

import dataclasses
import json

import pytest

from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.finetuning.config import PRESETS as FINETUNE_PRESETS
from pipelines import finetune, pretrain
from pipelines.ablate import AblateArgs
from pipelines.jobs.ablate import base_config

DATA = ["--data", "shards", "--output", "run"]


def write(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_a_runs_own_settings_start_another_run(tmp_path):
    config = dataclasses.replace(
        PRESETS["tiny"], train=dataclasses.replace(PRESETS["tiny"].train, lr=0.5, betas=(0.8, 0.9))
    )
    path = write(tmp_path / "run.json", {"config": config.to_dict(), "preset": "tiny", "finished": True})
    args = pretrain.parse_args([*DATA, "--config", path])
    assert (args.preset, args.config) == ("tiny", config)


@pytest.mark.parametrize("option", [["--config", "{}"], ["--config={}"]])
def test_a_part_of_the_settings_changes_the_preset_and_options_change_them(tmp_path, option):
    path = write(tmp_path / "part.json", {"train": {"lr": 1, "batch_size": 16}, "mask": {"strategy": "time"}})
    given = [word.format(path) for word in option]
    config = pretrain.parse_args([*DATA, "--preset", "small", *given, "--batch-size", "8"]).config
    assert (config.train.lr, config.train.batch_size, config.mask.strategy) == (1, 8, "time")
    assert config.model == PRESETS["small"].model


def test_finetune_takes_its_own_file(tmp_path):
    config = dataclasses.replace(FINETUNE_PRESETS["small-data"], head_lr=0.25)
    content = {"settings": {"config": config.to_dict(), "seeds": 1}, "finished": True}
    words = ["--encoder", "run", "--data", "shards", "--config", write(tmp_path / "finetune.json", content)]
    assert finetune.parse_args(words).config == config
    flat = write(tmp_path / "part.json", {"head_lr": 0.125})
    assert finetune.parse_args([*words[:-1], flat]).config.head_lr == 0.125


def test_an_ablation_varies_the_settings_of_a_file(tmp_path):
    path = write(tmp_path / "part.json", {"train": {"lr": 0.5}})
    base = base_config(AblateArgs(tables=("masking_ratio",), data="shards", output="table", config=path))
    assert base.train.lr == 0.5 and base.model == PRESETS["nano"].model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"learning_rate": 1}}, "there is no setting 'train.learning_rate'"),
        ({"optimizer": {}}, "there is no setting 'optimizer'"),
        ({"train": {"lr": "fast"}}, "'fast' is no value for 'train.lr'"),
        ({"train": {"batch_size": 2.5}}, "2.5 is no value for 'train.batch_size'"),
        ({"train": {"betas": [0.9]}}, r"\(0.9,\) is no value for 'train.betas'"),
        ({"train": {"loss": "l3"}}, "'l3' is no value for 'train.loss'"),
        ({"train": {"batch_size": True}}, "True is no value for 'train.batch_size'"),
        ({"train": 3}, "'train' is a group of settings"),
        ({"train": {"batch_size": 0}}, "batch_size must be positive"),
        ([1], "holds no JSON object"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        pretrain.parse_args([*DATA, "--config", write(tmp_path / "x.json", content)])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "torn.json").write_text('{"train": ')
    for name in ("torn.json", "missing.json"):
        with pytest.raises(UserError, match=f"{name}' cannot be read"):
            pretrain.parse_args([*DATA, "--config", str(tmp_path / name)])


def test_a_name_of_a_preset_that_is_unknown_here_is_no_preset(tmp_path):
    path = write(tmp_path / "run.json", {"config": PRESETS["nano"].to_dict(), "preset": "of a later version"})
    assert pretrain.parse_args([*DATA, "--config", path]).preset == "nano"
