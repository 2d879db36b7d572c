"""Settings that cannot be meant are refused when they are given."""

import pytest

from ajepa.errors import UserError
from ajepa.finetuning.config import PRESETS, FinetuneConfig

WRONG = {
    "encoder_lr": (0.0, "encoder_lr must be positive"),
    "head_lr": (-1e-3, "head_lr must be positive"),
    "layer_decay": (0.0, r"layer_decay must lie in \(0, 1\]"),
    "masked_keys": (1.0, r"masked_keys must lie in \[0, 1\)"),
    "ema": (1.0, r"ema must lie in \[0, 1\)"),
    "epochs": (0, "epochs must be positive"),
    "warmup_epochs": (31.0, "warmup_epochs must be at most epochs"),
    "mixup": (-0.1, "mixup must not be negative"),
    "epoch_clips": (10, "add --balanced"),
    "pooling": ("max", "pooling is one of mean"),
    "head_init": ("random", "head_init is one of zeros, probe"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_its_name(name):
    value, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**{name: value})


def test_the_defaults_are_the_write_ups_and_its_options_are_off():
    config = PRESETS["write-up"]
    assert config == FinetuneConfig() and (config.encoder_lr, config.head_lr) == (1e-5, 1e-3)
    assert (config.mixup, config.time_masks, config.frequency_masks, config.masked_keys, config.ema) == (0, 0, 0, 0, 0)
    assert config.layer_decay == 1 and not config.balanced
