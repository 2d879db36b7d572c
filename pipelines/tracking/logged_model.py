"""An encoder logged to MLflow as a model that `mlflow.pyfunc.load_model(...).predict(waveforms)` runs anywhere."""

import contextlib
import importlib.metadata
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import ajepa
from ajepa import storage
from ajepa.choices import Branch
from ajepa.errors import UserError
from ajepa.inference.pretrained import EXPORT_JSON, EXPORT_WEIGHTS, export_encoder, load_encoder
from pipelines.tracking.mlflow_run import Tracker
from pipelines.tracking.mlflow_uri import shown, without_password

MODEL_NAME = "encoder"
PACKAGES = ("mlflow", "numpy", "pyarrow", "safetensors", "soundfile", "soxr", "torch")
EXAMPLE_SECONDS = 0.5


def log_encoder(tracker: Tracker, encoder: str, branch: Branch | None = None) -> str:
    """Log the encoder of a run, checkpoint or export into a run, with signature and example; its URI "models:/...".

    The model takes float32 [-1, -1] waveforms, and gives float32 [-1, D] clip embeddings; the parameter `sample_rate`
    (Hz) is the encoder's own by default.

    Raises:
        UserError: no encoder there, or MLflow does not take it.
    """
    if not tracker.run_id:
        raise UserError(f"cannot log the encoder to MLflow at {shown(tracker.uri)!r}: it does not answer")
    with tempfile.TemporaryDirectory() as scratch:
        folder = local_export(encoder, branch, f"{scratch}/encoder")
        model = load_encoder(folder)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, model.width))]),
            params=ParamSchema([ParamSpec("sample_rate", "long", model.sample_rate)]),
        )
        samples = round(EXAMPLE_SECONDS * model.sample_rate)
        try:
            with _inside(tracker), _quiet():
                logged = mlflow.pyfunc.log_model(
                    name=MODEL_NAME,
                    python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                    artifacts={"encoder": folder},
                    code_paths=[str(Path(ajepa.__file__).parent)],
                    signature=signature,
                    input_example=np.zeros((1, samples), np.float32),
                    pip_requirements=requirements(),
                )
        except (MlflowException, OSError) as error:
            reason = without_password(str(error).splitlines()[0], tracker.uri)
            raise UserError(f"cannot log the encoder to MLflow at {shown(tracker.uri)!r}: {reason}") from error
    return str(logged.model_uri)


def local_export(encoder: str, branch: Branch | None, folder: str) -> str:
    """An export folder on this machine: the encoder itself if it is one, else made at `folder`."""
    encoder = storage.absolute(encoder)
    if storage.path_type(storage.join(encoder, EXPORT_JSON)) != "file":
        export_encoder(encoder, folder, branch)
        return folder
    if storage.is_local(encoder):
        return encoder
    Path(folder).mkdir(parents=True)
    for name in (EXPORT_WEIGHTS, EXPORT_JSON):
        with storage.open_input(storage.join(encoder, name)) as stream:
            Path(folder, name).write_bytes(stream.read())
    return folder


def requirements() -> list[str]:
    """What the model needs, from the version it was logged with up to the next major one."""
    versions = {name: importlib.metadata.version(name).split("+")[0].split(".")[:2] for name in PACKAGES}
    return [f"{name}~={'.'.join(version)}" for name, version in versions.items()]


@contextlib.contextmanager
def _inside(tracker: Tracker) -> Iterator[None]:
    """MLflow's global state, as its model loggers want it, for a while."""
    status = tracker.client.get_run(tracker.run_id).info.status
    before = os.environ.get("MLFLOW_TRACKING_URI")  # set by whoever sets the URI; the default is not to become one
    mlflow.set_tracking_uri(tracker.uri)
    try:
        with mlflow.start_run(run_id=tracker.run_id, nested=mlflow.active_run() is not None):
            yield
    finally:
        mlflow.set_tracking_uri(before)  # None: unset
        tracker.client.update_run(tracker.run_id, status)  # which the block above ended


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on type hints, which a tensor signature replaces, its progress bars, and the compiled
    file that its check of the model would leave in what is logged."""
    logger = logging.getLogger("mlflow")
    level, bars = logger.level, os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    logger.setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        yield
    finally:
        sys.dont_write_bytecode = compiles
        logger.setLevel(level)
        if bars is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = bars
