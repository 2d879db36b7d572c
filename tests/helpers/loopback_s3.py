"""A real S3 server on loopback, behind a wire that can be cut. tests/conftest.py makes its fixtures known."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import boto3
import pytest
from pyarrow import fs

from ajepa import storage

LOOPBACK = ("127.0.0.1", "0")  # a port that the server chooses
# With a third argument, a file: while it exists, writes to keys that match what it holds are refused, as by a bucket
# that is full.
SERVER = """
import pathlib, re, sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
refused = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
FULL = b"<?xml version='1.0'?><Error><Code>QuotaExceeded</Code><Message>the bucket is full</Message></Error>"

def app(environ, start_response):
    writes = environ["REQUEST_METHOD"] in ("PUT", "POST") and refused is not None and refused.exists()
    if not (writes and re.search(refused.read_text(), environ["PATH_INFO"])):
        return moto(environ, start_response)
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(FULL)))]
    start_response("403 Forbidden", headers)
    return [FULL]

server = make_server(sys.argv[1], int(sys.argv[2]), app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""

REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) ")  # how one begins


class Wire:
    """A TCP relay in front of the server that can be cut: live connections break and new ones are closed.

    With `cut_at`, bytes of a request such as a key, it is cut when they first pass, before the server sees them. What
    is asked arrives `delay` seconds late. `asked` counts requests by method, `answered` the bytes that came back."""

    def __init__(self, target: int, refused: Path | None = None) -> None:
        self.target, self.refused, self.cut = target, refused, False
        self.cut_at: bytes | None = None
        self.delay = 0.0
        self.asked, self.answered = Counter[str](), 0
        self._lock = threading.Lock()  # a connection is either broken or, once cut, never made
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: set[socket.socket] = set()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self.cut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self._ends |= {client, server}
            for a, b, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(a, b, asks), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket, asks: bool) -> None:
        try:
            while data := a.recv(1 << 16):
                if asks and self.cut_at is not None and self.cut_at in data:
                    self.break_now()
                self._count(data, asks)
                if asks and self.delay:
                    time.sleep(self.delay)
                b.sendall(data)
        except OSError:
            pass
        for end in (a, b):
            hang_up(end)
        with self._lock:
            self._ends -= {a, b}

    def _count(self, data: bytes, asks: bool) -> None:
        with self._lock:
            if not asks:
                self.answered += len(data)
            elif found := REQUEST.match(data):
                self.asked[found[1].decode()] += 1

    def reset_counts(self) -> None:
        with self._lock:
            self.asked, self.answered = Counter(), 0

    def break_now(self) -> None:
        with self._lock:
            self.cut = True
            for end in self._ends:
                hang_up(end)
            self._ends.clear()

    def fill(self, keys: str) -> None:
        """From now on the server refuses to write keys that match this regular expression: the bucket is full."""
        assert self.refused is not None
        self.refused.write_text(keys)

    def mend(self) -> None:
        """Let connections and writes through from now on."""
        if self.refused is not None:
            self.refused.unlink(missing_ok=True)
        with self._lock:
            self.cut, self.cut_at, self.delay = False, None, 0.0

    def close(self) -> None:
        hang_up(self._listener)
        self.break_now()


def hang_up(end: socket.socket) -> None:
    """Close a socket; shut down first, which a thread that waits for it notices, unlike the closing."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def ask_once(patch: pytest.MonkeyPatch, wire: Wire) -> None:
    """Clients, in this process, that do not ask again what they got no answer to: real ones do so for seconds."""
    client = fs.S3FileSystem(
        endpoint_override=f"http://127.0.0.1:{wire.port}", region="us-east-1",
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )  # fmt: skip
    patch.setattr(storage, "_filesystem", lambda uri: (client, uri.partition("://")[2]))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The wire to one server for all tests of this process; the environment points at the wire, also that of the
    session's Ray, which starts after it."""
    folder = tmp_path_factory.mktemp("moto")
    command = [sys.executable, "-c", SERVER, *LOOPBACK, str(folder / "refused")]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            port = int(server.stdout.readline())  # that the server itself chose and bound
            relay = Wire(port, folder / "refused")
            for name, value in {
                "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.port}",
            }.items():  # fmt: skip
                patch.setenv(name, value)
            yield relay
            relay.close()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def s3(s3_server):
    """The bucket "sounds", which holds nothing yet. This handle reaches it where the wire is cut, too."""
    storage._filesystem.cache_clear()
    bucket = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{s3_server.target}").create_bucket(Bucket="sounds")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def wire(s3, s3_server):
    """The wire between all clients, here and in the session's Ray, and the server. After the test it is whole again."""
    yield s3_server
    s3_server.mend()


@pytest.fixture
def here(monkeypatch):
    """Clients of this test alone, for one that changes the server's address."""
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()
