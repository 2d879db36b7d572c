"""Which settings each table compares, and how a setting changes the config that they start from.

Published numbers are those of the write-up that the specification follows: ViT-Base pretrained on AudioSet-2M, linear
probes, single runs; those of other methods are from their papers' own recipes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from ajepa.choices import LossName, Placement
from ajepa.config import PRESETS, Config
from ajepa.errors import UserError

AS20K, ESC50, SPEECH = "AudioSet-20K", "ESC-50", "Speech Commands"


@dataclass(frozen=True)
class Table:
    """One comparison: a setting is a word that changes the config."""

    title: str
    values: Callable[[Config], tuple[str, ...]]
    """Settings compared by default; they scale with the config."""
    apply: Callable[[Config, str], Config]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Percent, by setting and test set."""


def _mask(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, mask=dataclasses.replace(config.mask, **changes))


def _model(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _train(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def with_seed(config: Config, seed: int) -> Config:
    return _train(config, seed=seed)


def with_steps(config: Config, steps: int) -> Config:
    """The config with a run of this many steps."""
    return _train(config, max_steps=steps)


# The masks that each method's authors use; those that are not named keep the config's.
METHOD_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "jepa": ("jepa", {}),
    "mae": ("mae", {"strategy": "random", "mask_ratio": 0.8}),
    "maskspec": ("mae", {"strategy": "random", "mask_ratio": 0.75}),
    "ssast": ("ssast", {"mask_ratio": 0.78}),
    "beats": ("beats", {"strategy": "random", "mask_ratio": 0.75}),
    "m2d": ("m2d", {"strategy": "random", "mask_ratio": 0.7}),
    "eat": ("eat", {"mask_ratio": 0.8}),
    "lejepa": ("lejepa", {}),
}


def _method(config: Config, value: str) -> Config:
    if value not in METHOD_ROWS:
        raise ValueError(value)
    objective, masks = METHOD_ROWS[value]
    return _mask(_train(config, objective=objective), **masks)


def _strategy(config: Config, value: str) -> Config:
    """`random`, or with a masking ratio of its own `random@0.75`."""
    strategy, _, ratio = value.partition("@")
    return _mask(config, strategy=strategy, **({"mask_ratio": float(ratio)} if ratio else {}))


def _strategies(config: Config) -> tuple[str, ...]:
    """One masking ratio for all, as a comparison should have; of the write-up's own model its own rows."""
    own = "@0.75" if config.model == PRESETS["base"].model else ""
    return ("multiblock", f"single_block{own}", f"random{own}", "time", "frequency", "curriculum")


def _predictor(config: Config, value: str) -> Config:
    depth, _, width = value.partition("x")
    return _model(config, predictor_depth=int(depth), predictor_width=int(width))


def _predictors(config: Config) -> tuple[str, ...]:
    """Thirds of the config's depth, up to four; and its depth at the encoder's width, without the bottleneck."""
    depth, width = config.model.predictor_depth, config.model.predictor_width
    depths = sorted({max(1, round(depth * k / 3)) for k in (1, 2, 3, 4)})
    return (*(f"{d}x{width}" for d in depths), f"{depth}x{config.model.width}")


def _layers(config: Config) -> tuple[str, ...]:
    return tuple(str(k) for k in sorted({1, 2, 4, config.model.depth}) if k <= config.model.depth)


def _always(*values: str) -> Callable[[Config], tuple[str, ...]]:
    return lambda _: values


RATIOS = {"0.4": 35.1, "0.5": 36.0, "0.6": 36.8, "0.7": 37.2, "0.8": 36.5, "0.9": 34.9}
LOSSES = {"smooth_l1": 37.2, "l1": 36.8, "mse": 36.4, "cosine": 36.0}
PREDICTORS = {"2x384": 35.4, "4x384": 36.5, "6x384": 37.2, "8x384": 36.9, "6x768": 36.1}
STRATEGIES = {
    "multiblock": (37.2, 90.2), "single_block@0.75": (36.0, 89.3), "random@0.75": (34.8, 87.5), "time": (35.9, 88.8),
    "frequency": (34.2, 87.1),
}  # fmt: skip
RIVALS: dict[str, dict[str, float]] = {
    "jepa": {AS20K: 37.2, ESC50: 90.2, SPEECH: 98.2},
    "mae": {AS20K: 37.0, ESC50: 90.0, SPEECH: 98.0},
    "maskspec": {AS20K: 32.3, ESC50: 89.6},
    "ssast": {AS20K: 31.0, ESC50: 88.8, SPEECH: 98.0},
    "beats": {AS20K: 38.9, ESC50: 90.4, SPEECH: 98.1},  # its third iteration
    "supervised": {AS20K: 35.0, ESC50: 83.9, SPEECH: 96.8},  # trained on the labels of AudioSet-2M
}

TABLES: dict[str, Table] = {
    "objective": Table("objective", _always(*METHOD_ROWS), _method, RIVALS),
    "masking_strategy": Table(
        "masking strategy", _strategies, _strategy,
        {name: {AS20K: mean, ESC50: accuracy} for name, (mean, accuracy) in STRATEGIES.items()},
    ),
    "masking_ratio": Table(
        "masking ratio", _always(*RATIOS), lambda config, value: _mask(config, mask_ratio=float(value)),
        {name: {AS20K: value} for name, value in RATIOS.items()},
    ),
    "predictor": Table(
        "predictor depth x width", _predictors, _predictor, {name: {AS20K: v} for name, v in PREDICTORS.items()}
    ),
    "loss": Table(
        "loss", _always(*get_args(LossName)), lambda config, value: _train(config, loss=value),
        {name: {AS20K: value} for name, value in LOSSES.items()},
    ),
    "placement": Table(
        "block placement", _always(*get_args(Placement)), lambda config, value: _mask(config, placement=value)
    ),
    "target_layers": Table(
        "target layers averaged", _layers, lambda config, value: _train(config, target_layers=int(value))
    ),
}  # fmt: skip
ALL = ("objective", "masking_strategy", "masking_ratio", "predictor", "loss")  # the write-up's section 9


def published_text(table: str, setting: str) -> str:
    """Published percentages of a setting, as "AudioSet-20K 37.2, ESC-50 90.2"; "" where there are none."""
    return ", ".join(f"{data} {value:.1f}" for data, value in TABLES[table].published.get(setting, {}).items())


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """The tables meant: `all` stands for those of the write-up.

    Raises:
        UserError: one that there is not.
    """
    found = dict.fromkeys(name for word in names for name in (ALL if word == "all" else (word,)))
    for name in found:
        if name not in TABLES:
            raise UserError(f"unknown table {name!r}: choose from {', '.join(TABLES)} or all")
    return tuple(found)


def settings_of(name: str, base: Config, values: Sequence[str] = ()) -> dict[str, Config]:
    """The config of each setting of a table, by default of its own list.

    Raises:
        UserError: a value that the table does not know or that does not fit the config, or one twice.
    """
    table = TABLES[name]
    chosen = tuple(values) or table.values(base)
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--values has the same setting twice: {' '.join(chosen)}")
    configs = {}
    for value in chosen:
        try:
            configs[value] = table.apply(base, value)
        except UserError:
            raise
        except ValueError as error:
            known = f": one of {', '.join(table.values(base))}" if name == "objective" else ""
            raise UserError(f"{value!r} is no value for the table {name}{known}") from error
    return configs


def default_of(configs: Mapping[str, Config], base: Config) -> str:
    """The setting that the others are compared with: the one that changes nothing, else the first."""
    return next((name for name, config in configs.items() if config == base), next(iter(configs)))
