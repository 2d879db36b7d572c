"""Learning rates and ends of epochs by the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.schedule import Schedule


def make(clips=10, **changes) -> Schedule:
    return Schedule(FinetuneConfig(**({"epochs": 4, "batch_size": 5, "warmup_epochs": 1} | changes)), clips)


def test_warm_up_then_a_cosine_that_ends_near_zero():
    schedule = make()
    assert schedule.total_steps == 8
    wanted = [0.5, 1.0, 1.0, 0.933013, 0.75, 0.5, 0.25, 0.066987]
    assert [schedule.factor(step) for step in range(8)] == pytest.approx(wanted, abs=1e-6)


def test_the_encoder_waits_while_it_is_frozen():
    schedule = make(freeze_epochs=2)
    assert [schedule.encoder_factor(step) for step in range(5)] == [0, 0, 0, 0, schedule.factor(4)]


@given(clips=st.integers(1, 200), batch=st.integers(1, 64), epochs=st.integers(1, 12))
def test_every_epoch_ends_once_unless_a_step_ends_several(clips, batch, epochs):
    schedule = make(clips, epochs=epochs, batch_size=batch, warmup_epochs=0)
    ends = [schedule.ended_epoch(step) for step in range(1, schedule.total_steps + 1)]
    found = [epoch for epoch in ends if epoch is not None]
    assert found == sorted(set(found)) and ends[-1] == epochs
    for epoch in found:
        assert schedule.steps(epoch) == 1 + ends.index(epoch)
    if clips >= batch:
        assert found == list(range(1, epochs + 1))
