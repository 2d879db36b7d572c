"""What a CPU multiplies in, as torch says it."""

import torch

from ajepa.config import PRESETS
from ajepa.model import precision
from ajepa.model.precision import autocast_dtype, has_bf16

CPU = torch.device("cpu")


def test_torch_still_has_the_private_checks_that_are_called():
    """If this fails after an upgrade: look for their new names, or training on a CPU is in float32 alone."""
    assert [name for name in precision.CPU_BF16 if not callable(getattr(torch.cpu, name, None))] == []


def test_a_torch_without_them_trains_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "CPU_BF16", ("_no_such_check",))
    assert not has_bf16(CPU)
    assert autocast_dtype(PRESETS["nano"].train, CPU) is None


def test_one_kind_of_instructions_is_enough(monkeypatch):
    for answers in ((True, False), (False, True)):
        for name, answer in zip(precision.CPU_BF16, answers, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer)
        assert has_bf16(CPU)
        assert autocast_dtype(PRESETS["nano"].train, CPU) == torch.bfloat16
