"""Calls of MLflow's client, and what its errors mean: the run is gone, a record is refused for good, or the server is
away for a while. MLflow takes seconds to import, so it is imported by whoever calls."""

import hashlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from pipelines.tracking import mlflow_uri

OUTPUT_TAG = "ajepa.output"  # of a run: where its command writes
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"  # "Machine learning" in MLflow's pages
NO_KIND = ("", "no_inferred_type", "genai_development_inferred", "custom_model_development_inferred")  # nobody's choice
NOTE_TAG, NOTE_DIGEST_TAG = "mlflow.note.content", "ajepa.note_digest"
MOST_NOTE = 5000  # characters of a tag that servers of all versions take
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "RESOURCE_LIMIT_EXCEEDED")
UNKNOWN = ("ENDPOINT_NOT_FOUND", "PERMISSION_DENIED")  # answers of a server that has no datasets, or not for everybody
ANSWERED = re.compile(r"error code (?!408|429)4\d\d")  # of a server: it would answer the same again
AWAY = re.compile(
    r"locked|is full|readonly|timed? ?out|refused|could not (connect|translate)|too many|closed", re.IGNORECASE
)


class RunGoneError(Exception):
    """The server does not have the run."""


def experiment_id(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            folder = mlflow_uri.artifact_folder(uri)
            return str(client.create_experiment(name, artifact_location=folder, tags={KIND_TAG: KIND}))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.tags.get(KIND_TAG, "") in NO_KIND:
        try:
            client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
        except Exception as error:  # a permission that a run does not need
            if not is_final(error):
                raise
            print(
                f"warning: MLflow does not let its experiment {name!r} be marked as machine learning", file=sys.stderr
            )
    return str(found.experiment_id)


def end_abandoned(client: Any, experiment: str, tags: Mapping[str, str]) -> None:
    """End the runs of commands that were killed: this one holds their output, so that none of them can be alive.

    Args:
        tags: of the new run.
    """
    _end_running(client, experiment, {name: tags[name] for name in ("ajepa.job", OUTPUT_TAG) if name in tags})


def end_nested(client: Any, run_id: str) -> None:
    """End the runs under one that was stopped: their processes are stopped with it."""
    _end_running(client, client.get_run(run_id).info.experiment_id, {"mlflow.parentRunId": run_id})


def _end_running(client: Any, experiment: str, tags: Mapping[str, str]) -> None:
    """Runs that have all of these tags; a value that MLflow's search cannot hold matches none."""
    conditions = ["attributes.status = 'RUNNING'"]
    for name, value in tags.items():
        quote = '"' if "'" in value else "'"
        if quote in value:
            return
        conditions.append(f"tags.`{name}` = {quote}{value}{quote}")
    for run in client.search_runs([experiment], " and ".join(conditions)):
        client.set_terminated(run.info.run_id, "KILLED")


def call(method: Any, run_id: str, *values: Any) -> None:
    """A call about the run.

    Raises:
        RunGoneError: there is no such run, or it was deleted.
    """
    from mlflow.exceptions import MlflowException

    try:
        method(run_id, *values)
    except MlflowException as error:
        deleted = "must be in the 'active' state" in str(error)
        if deleted or (error.error_code in GONE and run_id in str(error)):
            raise RunGoneError from error
        raise


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    call(client.log_batch, run_id, [], [], [RunTag(name, value) for name, value in tags.items()])


def set_note(client: Any, run_id: str, text: str) -> None:
    """Write the run's description, unless somebody has changed it since it was written here."""
    found: dict[str, str] = {}
    call(lambda run: found.update(client.get_run(run).data.tags), run_id)
    present = found.get(NOTE_TAG, "")
    if not present or digest(present) == found.get(NOTE_DIGEST_TAG):
        set_tags(client, run_id, note_tags(text))


def note_tags(text: str) -> dict[str, str]:
    """The tags of a run's description: itself, cut where it is too long, and how it was when it was written."""
    text = text if len(text) <= MOST_NOTE else f"{text[: MOST_NOTE - 1]}…"
    return {NOTE_TAG: text, NOTE_DIGEST_TAG: digest(text)}


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def dataset_input(context: str, **about: Any) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(Dataset(**about), [InputTag("mlflow.data.context", context)])


def is_final(error: Exception) -> bool:
    """Whether asking again later is of no use. A database on this machine is there or never will be; a server may
    come back."""
    text = str(error)
    if "API request" in text or isinstance(error, OSError):
        return bool(ANSWERED.search(text))
    return not AWAY.search(text)
