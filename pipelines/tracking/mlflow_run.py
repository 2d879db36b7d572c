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
from ajepa.shards.schema import OK_SCHEMA
from pipelines.tracking import mlflow_store
from pipelines.tracking.history_tail import complete_histories
from pipelines.tracking.metric_groups import grouped
from pipelines.tracking.mlflow_calls import OUTPUT_TAG, note_tags
from pipelines.tracking.mlflow_sender import Sender, read_unsent
from pipelines.tracking.mlflow_unsent import UNSENT, Run
from pipelines.tracking.mlflow_uri import shown, tracking_uri, ui_command, with_password
from pipelines.tracking.source import RunSource, this_source, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ajepa.shards.dataset import ShardDataset

__all__ = ["Tracker", "flatten", "has_unsent", "metric_name", "require_store", "send_unsent", "shown", "start_run",
           "tracking_uri", "ui_command", "with_password"]  # fmt: skip
EXPERIMENT, JOB_TAG = "ajepa", "ajepa.job"


class Tracker:
    """Records one MLflow run; made by `start_run`."""

    def __init__(self, sender: Sender, source: RunSource) -> None:
        self._sender = sender
        self.source = source

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

    def log_metrics(self, step: int, metrics: Mapping[str, float], group: str | None = None) -> None:
        """One batch of metrics at a step.

        Args:
            metrics: by their plain names.
            group: of all of them, where their names do not tell it.
        """
        now = round(time() * 1000)
        self._sender.put({"metrics": [(grouped(k, group), float(value), now, step) for k, value in metrics.items()]})

    def describe(self, outcome: str) -> None:
        """Write the run's description: its outcome, in Markdown, and what made it. A description that somebody changed
        in MLflow stays."""
        self._sender.put({"note": f"{outcome.strip()}\n\n{self.source.markdown()}"})

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        self._sender.put_file(Path(path), folder)

    def log_text(self, text: str, name: str) -> None:
        self._sender.put({"text": text, "name": name})

    def log_dataset(self, dataset: ShardDataset, context: str) -> None:
        """Shards that the run reads or makes, by content hash.

        Args:
            context: "training", "evaluation", "inference" or "result".
        """
        profile = {
            "clips": dataset.num_clips, "bad_clips": dataset.num_failed, "hours": round(dataset.hours, 3),
            "labels": len(dataset.label_names), "shards": len(dataset.shards),
            "sample_rate": dataset.front_end.sample_rate, "mel_bins": dataset.front_end.n_mels,
        }  # fmt: skip
        self.log_input(dataset.path, dataset.content_hash, context, profile, {f.name: str(f.type) for f in OK_SCHEMA})

    def log_input(
        self,
        place: str,
        digest: str,
        context: str,
        profile: Mapping[str, Any],
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Data of any kind as an input of the run. MLflow keeps one context of the same data and run, the first.

        Args:
            place: a path or a URI.
            digest: of the content, at most 36 characters.
            context: as `log_dataset`.
            profile: numbers that say how much it is.
            columns: their types by name.
        """
        place = shown(place)
        specification = [{"name": name, "type": kind, "required": True} for name, kind in (columns or {}).items()]
        self._sender.put({
            "dataset": {
                "context": context,
                "name": place.rstrip("/").rpartition("/")[2] or place,
                "digest": digest,
                "source_type": place.partition("://")[0] if storage.is_uri(place) else "local",  # as MLflow names them
                "source": json.dumps({"uri": place}),
                "profile": json.dumps(dict(profile)),
                "schema": json.dumps({"mlflow_colspec": specification}) if columns else None,
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
    source: RunSource | None = None,
) -> Tracker:
    """Create a run on the driver, or go on with one; what earlier commands at the output could not send goes along.

    Args:
        uri: as from `tracking_uri`.
        output: keeps what cannot be sent.
        parent: MLflow run this one is nested under.
        histories: record also the reports of training, as they are written to the output.
        resumed: id of the run of an earlier command, "" where MLflow never gave one. Where it has no run of that id any
            more a new one is started, with a warning.
        source: what made the run, by default this process.

    Raises:
        UserError: MLflow will never record there. One that does not answer costs a warning.
    """
    if histories:
        complete_histories(output)  # of a command that was killed
    source = source or this_source()
    # Many machines have a /data/run.
    place = shown(output) if storage.is_uri(output) else f"{socket.gethostname()}:{output}"
    run = Run(
        name=name,
        experiment=experiment,
        params={key: without_secrets(str(value)) for key, value in params.items()},
        tags=source.tags(tags.get(JOB_TAG, ""))
        | note_tags(source.markdown())
        | dict(tags)
        | {OUTPUT_TAG: place}
        | ({"mlflow.parentRunId": parent} if parent else {}),
        run_id=resumed or "",
    )
    sender = Sender(uri, run, output, histories)
    for earlier in read_unsent(output, uri):
        if resumed is not None and earlier.run.run_id in ("", resumed):  # of this run: its end was not the end
            sender.take_over(earlier)
        else:
            sender.earlier.append(earlier)
    sender.start()
    return Tracker(sender, source)


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
