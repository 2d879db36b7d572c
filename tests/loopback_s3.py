"""A real S3 server on loopback, and a wire to it that can be cut. Fixtures: import them by name."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from ajepa import storage


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Wire:
    """A TCP relay in front of the server that can be cut: live connections break and new ones are closed."""

    def __init__(self, target: int) -> None:
        self.target, self.cut, self.seen = target, False, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.seen += 1
            if self.cut:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            self._pairs += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(1 << 16):
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            end.close()

    def break_now(self) -> None:
        self.cut = True
        for end in self._pairs:
            end.close()
        self._pairs.clear()

    def close(self) -> None:
        self._listener.close()
        self.break_now()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The port of a server whose bucket holds nothing yet; the environment points at it."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server")
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        deadline = time.monotonic() + 60
        while True:
            try:
                boto3.client("s3").create_bucket(Bucket="sounds")
                break
            except boto3.client("s3").exceptions.ClientError:
                raise
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield port
    server.terminate()
    server.wait()
    log.close()


@pytest.fixture
def wire(s3):
    relay = Wire(s3)
    yield relay
    relay.close()


@pytest.fixture
def here(monkeypatch):
    """Clients of this test alone: they live as long as the address they were made for."""
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()
