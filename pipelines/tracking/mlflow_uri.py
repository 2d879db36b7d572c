"""Addresses of MLflow: which are understood, made absolute, and shown without their passwords."""

import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ajepa import storage
from ajepa.errors import UserError
from pipelines.cli.arguments import in_ray_job

SERVERS = ("http", "https", "databricks")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SECRET = re.compile(r"pass|pwd|token|secret|key", re.IGNORECASE)  # names of options of a URI


def tracking_uri(given: str | None, output: str) -> str:
    """The tracking server or database: the option, MLFLOW_TRACKING_URI, or ./mlflow.db.

    Always absolute: workers start in other directories. Inside a Ray job, whose directory is temporary, the
    database lies beside the output.

    Raises:
        UserError: MLflow cannot record there.
    """
    chosen = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not chosen:
        folder = Path(storage.absolute(output)).parent if in_ray_job() and not storage.is_uri(output) else Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}"
    scheme = chosen.partition("://")[0].partition("+")[0]
    use = "use sqlite:///mlflow.db, sqlite:////ABSOLUTE/PATH/mlflow.db or http://HOST:PORT"
    if chosen.partition(":")[0] == "databricks":
        return chosen
    if not storage.is_uri(chosen):
        raise UserError(f"--mlflow-uri {shown(chosen)!r} is no URI: {use}")
    if scheme not in SERVERS + DATABASES:
        raise UserError(f"--mlflow-uri {shown(chosen)!r}: MLflow records to no {scheme}:// store: {use}")
    if scheme != "sqlite":
        return chosen
    head, _, rest = chosen.partition("://")
    path, mark, options = rest.removeprefix("/").partition("?")
    where = Path.cwd() / path
    if not path or not where.parent.is_dir() or where.is_dir():
        raise UserError(f"--mlflow-uri {chosen!r}: no database can be at {str(where)!r}: {use}")
    return f"{head}:///{where}{mark}{options}"


def artifact_folder(uri: str) -> str | None:
    """Where a database of files has its artifacts: beside it. None: where the server wants them."""
    database = sqlite_path(uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite database; None for other addresses."""
    if uri.partition("://")[0].partition("+")[0] != "sqlite":
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def shown(uri: str) -> str:
    """An address without what is secret in it: for people, files and logs."""
    if not storage.is_uri(uri):
        return uri
    if not secrets_of(uri):
        return uri
    parts = urlsplit(uri)
    login, at, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    if parts.scheme in SERVERS and not password:  # a token
        user, at = "", ""
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query) if not SECRET.search(k)])
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}", query=query))


def secrets_of(uri: str) -> list[str]:
    """The passwords and tokens in an address, percent-encoded and decoded. A server's user without a password is a
    token; a database's is a name."""
    if not storage.is_uri(uri):
        return []
    parts = urlsplit(uri)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    found = [password or (user if parts.scheme in SERVERS else "")]
    found += [value for name, value in parse_qsl(parts.query) if SECRET.search(name)]
    return [secret for value in found if value for secret in {value, unquote(value)}]


def without_password(text: str, uri: str) -> str:
    """A message about an address without what is secret in it."""
    for secret in secrets_of(uri):
        text = text.replace(secret, "***")
    return text


def with_password(recorded: str, given: str | None) -> str:
    """The full address of a recorded one, whose password was left out, where it is the one that is given now."""
    for full in (given, os.environ.get("MLFLOW_TRACKING_URI")):
        if full and shown(full) == recorded:
            return full
    return recorded


def ui_command(uri: str) -> str:
    """What to type to look at the runs."""
    program = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).parent / "mlflow")  # .venv not active
    where = shown(uri)
    return f"{program} ui --backend-store-uri {where}" if where.startswith("sqlite") else f"open {where}"
