"""Look at an embedding folder and listen to it: a map of its clips in the browser, or as a static site."""

from __future__ import annotations

import contextlib
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from ajepa import storage
from ajepa.audio.logmel import LogMel
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference.embedder import Embedder
from ajepa.inference.embeddings import Embeddings, open_embeddings
from ajepa.inference.neighbours import Neighbour, nearest
from ajepa.inference.query import embedder_of, vector_of
from pipelines.cli.command import announce
from pipelines.cli.lock import claimed
from pipelines.cli.output import OutputType, open_output
from pipelines.explorer.embedding_map import FOLDER, MapSettings, open_map, require_clip_level
from pipelines.explorer.export import LARGE, MARKER, export_site
from pipelines.explorer.server import LOOPBACK, Found, Search, listen, make_app, serve
from pipelines.explorer.site import Site, find_viewer, version_remark

if TYPE_CHECKING:  # the commands import this module
    from pipelines.explore import ExploreArgs

FOUND = 12  # clips nearest to a recording that are shown
SITE = OutputType("exported map", (MARKER,))


def main(args: ExploreArgs) -> None:
    """Make the map where there is none, then serve or export it."""
    check(args)
    viewer = find_viewer()
    if remark := version_remark():
        announce(f"note: {remark}")
    embeddings = open_embeddings(args.embeddings)
    require_clip_level(embeddings)
    if args.export is None:
        serve_map(args, embeddings, viewer)
        return
    output = storage.absolute(args.export)
    with claimed(output):
        if open_output(output, SITE, args.overwrite) is not None:
            raise UserError(f"--export {args.export!r} holds a site already: --overwrite makes it again")
        storage.clear(output)
        embedding_map = open_map(embeddings, map_folder(args, embeddings), settings_of(args))
        site = Site(embedding_map, viewer, paths=False)  # it may be published
        front_end = LogMel(FrontEndConfig())
        made = export_site(site, front_end, output, args.previews)
    if made.unread:
        print(f"note: {made.unread} of {made.clips} clips have no preview ({made.first})")
    if made.size > LARGE:
        print(f"note: a browser has to hold {made.size / 1e9:.1f} GB: shorter --previews make it less")
    print(
        f"{made.clips} clips, {made.size / 1e6:.1f} MB of table in {output}; to look at it: "
        f"python -m http.server --bind 127.0.0.1 --directory {output}"
    )


def check(args: ExploreArgs) -> None:
    """Options that make no sense.

    Raises:
        UserError: one does not.
    """
    for name in ("neighbours", "clusters"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be positive, got {getattr(args, name)}")
    if args.previews < 0:
        raise UserError(f"--previews must be 0 or more seconds, got {args.previews:g}")
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port is a number from 0 to 65535, got {args.port}")


def settings_of(args: ExploreArgs) -> MapSettings:
    return MapSettings(neighbours=args.neighbours, clusters=args.clusters, seed=args.seed)


def map_folder(args: ExploreArgs, embeddings: Embeddings) -> str:
    return storage.absolute(args.map) if args.map else storage.join(embeddings.path, FOLDER)


def serve_map(args: ExploreArgs, embeddings: Embeddings, viewer: Path) -> None:
    """Serve the map until Ctrl-C."""
    with contextlib.closing(listen(args.host, args.port)) as listening:
        embedder = load_embedder(args, embeddings)
        front_end = LogMel(FrontEndConfig()) if embedder is None else embedder.encoder.log_mel
        search = None if embedder is None else searcher(embeddings, embedder)
        begin = first_query(args, search)
        site = Site(open_map(embeddings, map_folder(args, embeddings), settings_of(args)), viewer)
        host, port = listening.getsockname()[:2]
        address = f"http://{host}:{port}/" if ":" not in host else f"http://[{host}]:{port}/"
        print(f"map of {embeddings.num_clips} clips at {address} (Ctrl-C ends it)", flush=True)
        loopback = host.startswith("127.") or host == "::1"
        app = make_app(site, front_end, search, LOOPBACK if loopback else ("*",), begin)
        if args.browser:  # it waits for the socket, which listens already
            webbrowser.open(address)
        serve(app, listening)


def load_embedder(args: ExploreArgs, embeddings: Embeddings) -> Embedder | None:
    """What made the embeddings, for recordings that are dropped; without it the map is shown all the same.

    Raises:
        UserError: it was asked for and is not there.
    """
    try:
        return embedder_of(embeddings, args.encoder)
    except UserError as error:
        if args.encoder is not None or args.query is not None:
            raise
        announce(f"note: no search by recordings: {error}")
        return None


def searcher(embeddings: Embeddings, embedder: Embedder) -> Search:
    """The clips nearest to a recording."""
    one_at_a_time = threading.Lock()  # the model's own threads use all CPUs

    def search(recording: str | bytes) -> list[Neighbour]:
        with one_at_a_time:
            return nearest(embeddings, vector_of(embedder, recording), FOUND)

    return search


def first_query(args: ExploreArgs, search: Search | None) -> Found | None:
    """What --query finds.

    Raises:
        UserError: it cannot be read.
    """
    if args.query is None or search is None:
        return None
    try:
        return Found(args.query.rpartition("/")[2], search(args.query))
    except UserError as error:
        raise UserError(f"--query {args.query!r}: {error}") from error
