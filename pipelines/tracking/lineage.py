"""Which pretraining run an encoder comes from, so that other jobs' MLflow runs can name it."""

from typing import Any

from ajepa import storage
from ajepa.checkpoints import RUN_JSON
from ajepa.documents import read_document
from ajepa.inference.pretrained import EXPORT_JSON
from pipelines.tracking.mlflow_uri import sqlite_path, tracking_uri, with_password

RESTORE = "restore it from a copy, or leave it out"


def pretraining(encoder: str) -> dict[str, str]:
    """{"mlflow_run", "mlflow_uri"} of the run that trained a run folder's, a checkpoint's or an export's encoder; {}
    where it is not known. An export knows the run alone, and a tracking store may have moved since."""
    where = storage.absolute(encoder)
    exported = storage.join(where, EXPORT_JSON)
    if storage.path_type(exported) == "file":
        found: dict[str, Any] = read_document(exported, RESTORE).get("notes", {})
    else:
        folders = [where, where.rstrip("/").rpartition("/")[0].rpartition("/")[0]]  # RUN or RUN/checkpoints/STEP
        runs = [storage.join(folder, RUN_JSON) for folder in folders if folder]
        found = next((read_document(run, RESTORE) for run in runs if storage.path_type(run) == "file"), {})
    return {name: found[name] for name in ("mlflow_run", "mlflow_uri") if found.get(name)}


def exported_runs(origin: dict[str, str]) -> dict[str, str]:
    """What an export says of the run: its id alone. The address of a tracking server may hold a password, and exports
    are handed on."""
    return {name: origin[name] for name in ("mlflow_run",) if name in origin}


def recorded_uri(origin: dict[str, str]) -> str | None:
    """The pretraining run's tracking URI, with its password where it is known here, unless it is a database that did
    not come along."""
    uri = origin.get("mlflow_uri")
    if uri is None:
        return None
    database = sqlite_path(uri)
    return with_password(uri, None) if database is None or database.exists() else None


def resumed_uri(given: str | None, output: str, found: dict[str, Any] | None, other: str | None = None) -> str:
    """Where a run that may have been started already is recorded: where the option says, where it was, where `other`
    says, or by default. The folder of a database may be gone; a database alone is made anew."""
    recorded = found["mlflow_uri"] if found else None
    if recorded is not None:
        database = sqlite_path(recorded)
        recorded = with_password(recorded, given) if database is None or database.parent.is_dir() else None
    return tracking_uri(given or recorded or other, output)
