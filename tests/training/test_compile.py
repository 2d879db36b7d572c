"""torch.compile: one graph, the same steps."""

import dataclasses
import shutil

import pytest
import torch
from helpers import training_state
from helpers.training_state import MODEL, make_inputs, make_state

from ajepa.config import PATCH
from ajepa.training.step import train_step
from ajepa.training.watch import NonFiniteLoss


@pytest.mark.process
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_a_compiled_step_is_one_graph_and_equals_the_eager_one(monkeypatch):
    monkeypatch.setattr(training_state, "MODEL", dataclasses.replace(MODEL, depth=1))  # the C++ compiler takes a minute
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in ("off", "on"):
        state = make_state(compile=compiled)
        losses.append([train_step(state, make_inputs(state, step)).loss.item() for step in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    inputs = make_inputs(state, 3)
    frequency, time = divmod(int(inputs.targets[5, 0]), MODEL.crop_frames // PATCH)
    inputs.log_mel[5, frequency * PATCH, time * PATCH] = torch.nan  # of a target alone: only the loss depends on it
    with pytest.raises(NonFiniteLoss, match="loss nan, gradient norm nan"):
        train_step(state, inputs)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"] and not counters["recompiles"]


def test_compiling_changes_no_name_of_a_weight():
    assert list(make_state(compile="on").core.state_dict()) == list(make_state(compile="off").core.state_dict())
