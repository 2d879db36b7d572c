"""Whether MLflow can record at an address, asked before a command begins and before MLflow itself asks: it tries to
connect to a database that is down for more than a minute."""

import logging
import os
import socket

from ajepa.errors import UserError
from pipelines.tracking.mlflow_calls import is_final
from pipelines.tracking.mlflow_uri import shown, sqlite_path, without_password

CONNECT_SECONDS = 5.0  # until a database that does not answer counts as away
PORTS = {"postgresql": 5432, "mysql": 3306}  # an address of mssql may name a data source, which is no host


def require_store(uri: str, experiment: str) -> None:
    """Refuse an address where MLflow will never record, before anything is done. Nothing is created there. A server
    that does not answer is none of those.

    Raises:
        UserError: what MLflow says of it.
    """
    database = sqlite_path(uri)
    if database is not None and not (database.exists() and database.stat().st_size):
        if not os.access(database if database.exists() else database.parent, os.W_OK):
            raise UserError(f"cannot record to MLflow at {shown(uri)!r}: no permission to write there")
        return
    from mlflow import MlflowClient  # seconds

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it would print the same
    try:
        require_answer(uri)
        MlflowClient(uri).get_experiment_by_name(experiment)
    except Exception as error:
        if is_final(error):
            raise refusal(uri, error) from error


def refusal(uri: str, error: BaseException) -> UserError:
    """One line on an error that MLflow will always give at this address."""
    return UserError(f"cannot record to MLflow at {shown(uri)!r}: {first_line(uri, error)}")


def first_line(uri: str, error: BaseException) -> str:
    """What an error says, in one line without what is secret in the address."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_password(text, uri)


def require_answer(uri: str) -> None:
    """Connect to the host of a database, and hang up.

    Raises:
        OSError: it does not answer.
        ImportError: the package that speaks to it is missing.
    """
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme not in PORTS:
        return
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    url.get_dialect().import_dbapi()
    if url.host and "," not in url.host and "host" not in url.query:  # else several hosts, or a socket's file
        socket.create_connection((url.host, url.port or PORTS[scheme]), CONNECT_SECONDS).close()
