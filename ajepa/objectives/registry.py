"""The objectives by name. A new one is a file beside this one, a line here and its name in `ajepa.choices`."""

import contextlib
from collections.abc import Iterator

import torch

from ajepa.choices import ObjectiveName
from ajepa.config import Config
from ajepa.objectives.base import Objective
from ajepa.objectives.beats import BEATs
from ajepa.objectives.eat import EAT
from ajepa.objectives.jepa import AJEPA
from ajepa.objectives.lejepa import LeJEPA
from ajepa.objectives.m2d import M2D
from ajepa.objectives.mae import MAE
from ajepa.objectives.ssast import SSAST

OBJECTIVES: dict[ObjectiveName, type[Objective]] = {
    "jepa": AJEPA,
    "mae": MAE,
    "ssast": SSAST,
    "beats": BEATs,
    "m2d": M2D,
    "eat": EAT,
    "lejepa": LeJEPA,
}


def build_objective(config: Config) -> Objective:
    """A freshly initialised model; the weights depend on the config and its seed alone, those of the encoder on the
    model and the seed."""
    with initialised_by(config.train.seed):
        return OBJECTIVES[config.train.objective](config)


@contextlib.contextmanager
def initialised_by(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on the seed alone; random states are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
