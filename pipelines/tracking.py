"""MLflow: where runs are recorded, and a handle that any process can log through. MLflow takes seconds to import: a
process that only carries the handle does not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.errors import UserError
from pipelines.ray_cluster import in_ray_job

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ajepa.shards.dataset import ShardDataset

EXPERIMENT = "ajepa"


@dataclass(frozen=True)
class Tracker:
    """One MLflow run, by its id: pickles to workers and callbacks, so retries log into the same run."""

    uri: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One batch of figures at a step."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(k, float(v), now, step) for k, v in metrics.items()])

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_dataset(self, dataset: ShardDataset, context: str) -> None:
        """The shards as an input of the run, by content hash; context is "training" or "evaluation"."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = Dataset(
            name=dataset.path.rstrip("/").rpartition("/")[2],
            digest=dataset.content_hash,
            source_type="ajepa shards",
            source=json.dumps({"path": dataset.path}),
            profile=json.dumps({"clips": dataset.num_clips, "hours": round(dataset.hours, 3)}),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(found, [InputTag("mlflow.data.context", context)])])

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """End the run FINISHED with the block, FAILED on an error and KILLED on Ctrl-C."""
        self.client.update_run(self.run_id, "RUNNING")  # a resumed run has ended once already
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            self.client.set_terminated(self.run_id, status)
            raise
        self.client.set_terminated(self.run_id, "FINISHED")


def tracking_uri(mlflow_uri: str | None, output: str) -> str:
    """The tracking server or database: the option, MLFLOW_TRACKING_URI, or ./mlflow.db.

    Always absolute: workers start in other directories. Inside a Ray job, whose directory is temporary, the
    database lies beside the output.
    """
    chosen = mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not chosen:
        folder = Path(storage.absolute(output)).parent if in_ray_job() and not storage.is_uri(output) else Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"
    if not storage.is_uri(chosen):
        raise UserError(f"--mlflow-uri {chosen!r} is no URI: use sqlite:///ABSOLUTE/PATH/mlflow.db or http://HOST:PORT")
    return chosen


def ui_command(uri: str) -> str:
    """What to type to look at the runs."""
    program = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).parent / "mlflow")  # .venv not active
    return f"{program} ui --backend-store-uri {uri}" if uri.startswith("sqlite") else f"open {uri}"


def start_run(
    uri: str,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
    experiment: str = EXPERIMENT,
) -> Tracker:
    """Create a run on the driver.

    Raises:
        UserError: the tracking server cannot be reached.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            location = None
            if uri.startswith("sqlite:///"):  # a database of files: artifacts lie beside it
                location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
            try:
                experiment_id = client.create_experiment(experiment, artifact_location=location)
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    raise
                experiment_id = found.experiment_id
        else:
            experiment_id = found.experiment_id
        all_tags = dict(tags) | ({"mlflow.parentRunId": parent} if parent else {})
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
        run_id = run.info.run_id
        client.log_batch(run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])
    except (MlflowException, OSError) as error:
        raise UserError(f"cannot record to MLflow at {uri!r}: {str(error).splitlines()[0]}") from error
    return Tracker(uri, run_id)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "model.depth": 12 pairs, MLflow's parameters."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
