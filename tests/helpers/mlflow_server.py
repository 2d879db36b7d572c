"""A real MLflow server on loopback, behind a wire that can be cut."""

import os
import socket
import subprocess
import sys
import urllib.request

import pytest

from helpers.faults import wait_for
from helpers.loopback_s3 import Wire


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_mlflow):
    """The wire to a server with a database and artifacts of its own."""
    folder = tmp_path_factory.mktemp("server")
    port, database = free_port(), new_mlflow(folder)
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--artifacts-destination",
        str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # processes that nobody needs here
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment) as process,
    ):

        def answers():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        try:
            wait_for(answers, "MLflow's server", lambda: process.poll() is None)
            relay = Wire(port)
            relay.database, relay.artifacts = database, folder / "artifacts"  # past the wire
            yield relay
            relay.close()
        finally:
            process.terminate()


@pytest.fixture
def mlflow_wire(server):
    """The wire, whole at the beginning and the end."""
    yield server
    server.mend()
