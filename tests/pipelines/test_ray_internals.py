"""The parts of Ray beyond its public interface that the jobs use: what an upgrade removed is named here."""

import importlib
import logging

import pytest
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.preemption import PreemptionContext

from ajepa.errors import Preempted, UserError
from pipelines.rayjobs import ray_internals

LOGGERS = [
    *ray_internals.DATA_PROGRESS,
    ray_internals.TOKEN,
    *ray_internals.WORKER_ERRORS,
    *ray_internals.CONTROLLER_ERRORS,
]


@pytest.mark.parametrize("name", LOGGERS)
def test_ray_logs_under_the_name_of_its_module(name):
    assert importlib.import_module(name).logger.name == name


def test_ray_logs_reports_under_the_name_of_a_file():
    context = importlib.import_module(ray_internals.TRAIN_CONTEXT)
    assert context.logger.name == context.__file__


def test_a_worker_can_ask_whether_its_node_is_drained():
    assert TrainContext.__annotations__["preemption_context"] is PreemptionContext
    assert PreemptionContext().preemption_info is None


@pytest.mark.parametrize(
    ("error", "kept", "message"),
    [
        (UserError("x"), False, "worker failed"),
        (Preempted("stopped at step 3"), True, "stopped at step 3"),
        (ValueError("x"), True, "worker failed"),
    ],
)
def test_user_errors_are_left_out_of_rays_log(error, kept, message):
    record = logging.LogRecord("ray", logging.ERROR, __file__, 1, "worker failed", (), None)
    try:
        raise error
    except (UserError, Preempted, ValueError):
        assert ray_internals.HideUserErrors().filter(record) is kept
    assert record.msg == message
