"""Configs refuse what cannot work and survive JSON."""

import json

import pytest

from ajepa.config import PRESETS, Config, FrontEndConfig, MaskConfig, ModelConfig, TrainConfig
from ajepa.config_json import differences
from ajepa.errors import UserError
from ajepa.training.schedules import total_steps


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert Config.from_dict(json.loads(PRESETS[name].to_json())) == PRESETS[name]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ModelConfig(crop_frames=100), "100 is not a multiple of the patch side 16"),
        (lambda: ModelConfig(n_mels=80 + 1), "n_mels=81"),
        (lambda: ModelConfig(width=100, heads=12), "not divisible"),
        (lambda: FrontEndConfig(clip_frames=1000), "clip_frames=1000"),
        (lambda: FrontEndConfig(f_max=9000), "f_min < f_max"),
        (lambda: MaskConfig(mask_ratio=1.2), "between 0 and 1"),
        (lambda: TrainConfig(batch_size=0), "batch_size must be positive"),
        (lambda: TrainConfig(warmup_epochs=400), "warmup_epochs"),
        (lambda: Config(model=ModelConfig(depth=2), train=TrainConfig(target_layers=3)), "target_layers=3"),
        (lambda: Config(mask=MaskConfig(mask_ratio=0.0001)), "no context or no target"),
    ],
)
def test_mistakes_are_named(make, match):
    with pytest.raises(UserError, match=match):
        make()


def test_a_config_of_another_version_is_refused_by_its_keys():
    values = json.loads(PRESETS["nano"].to_json())
    values["train"]["momentum"] = values["train"].pop("lr")
    with pytest.raises(UserError, match=r"unknown \['momentum'\], missing \['lr'\]"):
        Config.from_dict(values)


def test_differences_name_the_settings():
    old, new = PRESETS["nano"].to_dict(), PRESETS["nano"].to_dict()
    new["model"]["depth"] = 9
    assert differences(old, new) == ["model.depth: 4 -> 9"]
    assert differences(old, json.loads(json.dumps(old))) == []


def test_clip_samples_give_exactly_the_clip_frames():
    config = FrontEndConfig()
    assert 1 + config.clip_samples // config.hop_length == config.clip_frames
    assert 1 + (config.clip_samples + 1) // config.hop_length == config.clip_frames + 1


def test_nano_reaches_its_last_step_on_400_clips():
    train = PRESETS["nano"].train
    assert total_steps(train, 400) == train.max_steps
