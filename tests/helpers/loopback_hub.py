"""A Hugging Face Hub on loopback, as far as a download asks for it: files of a folder under /resolve/."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", "refs/pr/1", COMMIT)


class LoopbackHub(ThreadingHTTPServer):
    """Its folder `root` holds OWNER/REPOSITORY/files, all of one commit; `asked` names what was asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.asked = root, list[str]()
        self.gated: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: Any) -> None:
        """Nothing: what was asked for is in `asked`."""

    def _answer(self, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        folder = self.server.root / repository.strip("/")
        if repository.strip("/") in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif not folder.is_dir():
            self._refuse(401, "RepoNotFound")
        elif unquote(revision) not in REVISIONS:
            self._refuse(404, "RevisionNotFound")
        elif not (folder / unquote(file)).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            content = (folder / unquote(file)).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def loopback_hub(root: Path) -> Iterator[LoopbackHub]:
    hub = LoopbackHub(root)
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
