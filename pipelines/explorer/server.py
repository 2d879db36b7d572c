"""The map in the browser: the viewer's own page with the folder's table, the sound and the log-mel of a clip when they
are asked for, and the clips most like a recording. Served to this machine unless another host is asked for."""

import contextlib
import functools
import io
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel
from ajepa.errors import UserError, one_line
from ajepa.inference.neighbours import Neighbour
from ajepa.storage import UnreachableError
from pipelines.explorer import sounds
from pipelines.explorer.embedding_map import clip_of
from pipelines.explorer.site import PAGE, Site

PICTURE = 600, 128  # pixels
MOST = 200 << 20  # bytes of a recording that is dropped
NAMES = 4  # of this server, whose tables are kept; with --host, whoever asks chooses the name
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

Search = Callable[[str | bytes], list[Neighbour]]  # of a path or URI, or of the content of an audio file


class Found(NamedTuple):
    """The clips nearest to a recording."""

    name: str  # of the recording
    clips: list[Neighbour]


def make_app(
    site: Site,
    front_end: LogMel,
    search: Search | None,
    hosts: tuple[str, ...] = LOOPBACK,
    begin: Found | None = None,
) -> Starlette:
    """The application.

    Args:
        search: the clips nearest to a recording; None where the encoder is not at hand.
        hosts: names under which it answers: a page of another site that knows the port is not answered.
        begin: what the page shows as found when it opens.
    """
    table = site.table
    numbers = {clip: row for row, clip in enumerate(table["clip_id"].to_pylist())}

    @functools.lru_cache(NAMES)
    def content(base: str) -> bytes:
        """The table as the page loads it. Players want whole addresses: there is one for each name of this server."""
        stream = io.BytesIO()
        pq.write_table(site.served(base), stream, compression="zstd")
        return stream.getvalue()

    def index(_: Request) -> Response:
        found = None if begin is None else {"name": begin.name, "found": shown(begin.clips)}
        return HTMLResponse(site.index(search=search is not None, begin=found))

    def metadata(_: Request) -> Response:
        return JSONResponse(site.metadata())

    def dataset(request: Request) -> Response:
        return Response(content(str(request.base_url)), media_type="application/vnd.apache.parquet")

    def sound(request: Request) -> Response:
        return _of_clip(request, lambda samples: (sounds.as_file(samples, "WAV"), "audio/wav"))

    def log_mel(request: Request) -> Response:
        return _of_clip(request, lambda samples: (sounds.picture(samples, front_end, *PICTURE), "image/png"))

    def _of_clip(request: Request, make: Callable[[np.ndarray], tuple[bytes, str]]) -> Response:
        row = request.path_params["row"]
        if row >= table.num_rows:
            return PlainTextResponse(f"no clip has the number {row}", 404)
        try:
            content, kind = make(sounds.waveform(clip_of(table, row), sounds.MAX_SECONDS))
        except (AudioError, UnreachableError, OSError) as error:
            return PlainTextResponse(f"{table['clip_id'][row]}: {one_line(error)}", 404)
        return _ranged(request, content, kind)

    async def searched(request: Request) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MOST:
                return PlainTextResponse(f"a recording of more than {MOST >> 20} MB", 413)
        return await run_in_threadpool(answer, bytes(content))

    def answer(content: bytes) -> Response:
        if search is None:
            return PlainTextResponse("the encoder of these embeddings is not here", 404)
        try:
            found = search(content)
        except UserError as error:
            return PlainTextResponse(one_line(error), 400)
        return JSONResponse(shown(found))

    def shown(found: list[Neighbour]) -> list[dict[str, Any]]:
        rows = [numbers[n.clip_id] for n in found]
        at = table.select(["x", "y", "label"]).take(rows).to_pylist()
        return [
            {"row": row, "clip_id": n.clip_id, "similarity": n.similarity, **place}
            for row, n, place in zip(rows, found, at, strict=True)
        ]

    return Starlette(
        routes=[
            Route("/", index),
            Route("/index.html", index),
            Route("/data/metadata.json", metadata),
            Route("/data/dataset.parquet", dataset),
            Route("/data/cache/{name}", lambda _: PlainTextResponse("", 404), methods=["GET", "POST"]),
            Route("/sound/{row:int}.wav", sound),
            Route("/log-mel/{row:int}.png", log_mel),
            Route("/search", searched, methods=["POST"]),
            Mount("/explore", StaticFiles(directory=PAGE)),
            Mount("/", StaticFiles(directory=site.viewer)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
    )


def _ranged(request: Request, content: bytes, kind: str) -> Response:
    """All of it or the range that was asked for: without ranges a player cannot jump."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "max-age=3600"}
    unit, _, ranges = request.headers.get("range", "").partition("=")
    first, _, last = ranges.partition("-")
    if unit != "bytes" or not first.isdigit():
        return Response(content, media_type=kind, headers=headers)
    begin, end = int(first), min(int(last) + 1 if last.isdigit() else len(content), len(content))
    if begin >= end:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(content)}"})
    headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
    return Response(content[begin:end], 206, headers, kind)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: the port is taken, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot serve at {host}:{port}: {error.strerror or error} (--port 0 takes any free one)"
        ) from error
    return listening


def serve(app: Any, listening: socket.socket) -> None:
    """Answer until Ctrl-C or SIGTERM, which are no interruption: nothing is left to be done."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it has stopped
        server.run(sockets=[listening])
