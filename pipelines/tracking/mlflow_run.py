"""MLflow: a handle to record a run with. It is never in the way: records are handed to a thread (`mlflow_sender`), and
a server that is down, slow or full costs a warning."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.errors import UserError
from pipelines.tracking import mlflow_store
from pipelines.tracking.history_tail import complete_histories
from pipelines.tracking.mlflow_calls import OUTPUT_TAG
from pipelines.tracking.mlflow_sender import Sender, read_unsent
from pipelines.tracking.mlflow_unsent import UNSENT, Run
from pipelines.tracking.mlflow_uri import shown, tracking_uri, ui_command, with_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ajepa.shards.dataset import ShardDataset

__all__ = ["Tracker", "flatten", "has_unsent", "metric_name", "require_store", "send_unsent", "shown", "start_run",
           "tracking_uri", "ui_command", "with_password"]  # fmt: skip
EXPERIMENT = "ajepa"


class Tracker:
    """Records one MLflow run; made by `start_run`."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    @property
    def uri(self) -> str:
        """Of MLflow, with its password: not to be shown or stored."""
        return self._sender.uri

    @property
    def run_id(self) -> str:
        """ "" where MLflow has not answered yet."""
        return self._sender.run.run_id

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One batch of metrics at a step."""
        now = round(time() * 1000)
        self._sender.put({"metrics": [(key, float(value), now, step) for key, value in metrics.items()]})

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        self._sender.put_file(Path(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._sender.put({"text": text, "name": name})

    def log_dataset(self, dataset: ShardDataset, context: str) -> None:
        """The shards as an input of the run, by content hash; context is "training" or "evaluation"."""
        self._sender.put({
            "dataset": {
                "context": context,
                "name": dataset.path.rstrip("/").rpartition("/")[2],
                "digest": dataset.content_hash,
                "source_type": "ajepa shards",
                "source": json.dumps({"path": dataset.path}),
                "profile": json.dumps({"clips": dataset.num_clips, "hours": round(dataset.hours, 3)}),
            }
        })  # fmt: skip

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """End the run FINISHED with the block, FAILED on an error and KILLED on Ctrl-C."""
        status = "FINISHED"
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            raise
        finally:
            if self._sender.histories:
                with contextlib.suppress(OSError, UserError):  # the store is away: the next command does it
                    complete_histories(self._sender.output)
            self._sender.finish(status)


def start_run(
    uri: str,
    name: str,
    *,
    output: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
    experiment: str = EXPERIMENT,
    histories: bool = False,
    resumed: str | None = None,
) -> Tracker:
    """Create a run on the driver, or go on with one; what earlier commands at the output could not send goes along.

    Args:
        uri: as from `tracking_uri`.
        output: keeps what cannot be sent.
        parent: MLflow run this one is nested under.
        histories: record also the reports of training, as they are written to the output.
        resumed: id of the run of an earlier command, "" where MLflow never gave one. Where it has no run of that id any
            more a new one is started, with a warning.

    Raises:
        UserError: MLflow will never record there. One that does not answer costs a warning.
    """
    if histories:
        complete_histories(output)  # of a command that was killed
    place = output if storage.is_uri(output) else f"{socket.gethostname()}:{output}"  # many machines have a /data/run
    run = Run(
        name=name,
        experiment=experiment,
        params={key: str(value) for key, value in params.items()},
        tags=dict(tags) | {OUTPUT_TAG: place} | ({"mlflow.parentRunId": parent} if parent else {}),
        run_id=resumed or "",
    )
    sender = Sender(uri, run, output, histories)
    for earlier in read_unsent(output, uri):
        if resumed is not None and earlier.run.run_id in ("", resumed):  # of this run: its end was not the end
            sender.take_over(earlier)
        else:
            sender.earlier.append(earlier)
    sender.start()
    return Tracker(sender)


def require_store(uri: str) -> None:
    """Refuse an address where MLflow will never record, before the work begins; nothing is created there.

    Raises:
        UserError: what MLflow says of it.
    """
    mlflow_store.require_store(uri, EXPERIMENT)


def has_unsent(output: str) -> bool:
    """Whether an earlier command at an output kept what it could not send."""
    return any(name.startswith(f"{UNSENT}/") for name in storage.contents(output))


def send_unsent(output: str, uri: str) -> None:
    """Send what earlier commands at an output could not."""
    senders = read_unsent(output, uri)
    if senders:
        first, *first.earlier = senders
        with contextlib.suppress(ValueError):
            first.start()
        first.finish(first.run.status)


def metric_name(*parts: str) -> str:
    """One name of a metric; MLflow takes no "+" in it."""
    return "_".join(parts).replace(" ", "_").replace("+", "_")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "model.depth": 12 pairs, MLflow's parameters."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
