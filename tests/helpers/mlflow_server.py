"""MLflow's own server on loopback, behind a wire that can be cut."""

import os
import subprocess
import sys

import pytest

from helpers.loopback_s3 import LOOPBACK, Wire

# `mlflow server` would start several processes that each import all of MLflow: a minute on two cores.
SERVER = """
import sys
from werkzeug.serving import make_server
from mlflow.server import app
server = make_server(sys.argv[1], int(sys.argv[2]), app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


def server_environment(database: str, artifacts: str) -> dict[str, str]:
    """What SERVER reads: a database and a folder for artifacts, as URIs."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": database, "_MLFLOW_SERVER_REGISTRY_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/", "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_mlflow):
    """The wire to a server with a database and artifacts of its own."""
    folder = tmp_path_factory.mktemp("server")
    database, artifacts = new_mlflow(folder), folder / "artifacts"
    environment = os.environ | server_environment(database, artifacts.as_uri())
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-c", SERVER, *LOOPBACK], stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment
        ) as process,
    ):
        try:
            relay = Wire(int(process.stdout.readline()))
            relay.database, relay.artifacts = database, artifacts  # past the wire
            yield relay
            relay.close()
        finally:
            process.terminate()


@pytest.fixture
def mlflow_wire(server):
    """The wire, whole at the beginning and the end."""
    yield server
    server.mend()
