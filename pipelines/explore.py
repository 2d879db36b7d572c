"""Look at an embedding folder and listen to it: a map of its clips in the browser, on this machine alone. A click plays
a clip and shows its log-mel and its neighbours; a recording that is dropped is looked for. With --export, a static
site."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class ExploreArgs:
    """Explore embeddings."""

    embeddings: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EMBEDDINGS")]
    """A finished embedding folder of level `clip`; a local path or a URI."""
    export: str | None = None
    """An output folder: write a static site there instead of serving one; a local path or a URI."""
    previews: float = 3.0
    """With --export: seconds of each clip that can be heard and seen there; 0 leaves sound and log-mels out."""
    query: str | None = None
    """Begin with the clips nearest to this audio file; a local path or a URI."""
    encoder: str | None = None
    """Where the encoder of the embeddings lies, if it has moved since."""
    neighbours: int = 15
    """Nearest clips that are known of each clip; the layout is made from them."""
    clusters: int = 12
    """Clusters by k-means: colours where clips have no labels, names on the map."""
    seed: int = 0
    """Of layout and clusters."""
    map: str | None = None
    """The folder in which the map is kept, once made; by default `map` in the embedding folder."""
    overwrite: bool = False
    """With --export: delete the site found there first."""
    host: str = "127.0.0.1"
    """Address to serve at. Anyone who reaches another one than the default can listen to every clip."""
    port: int = 5055
    """Port to serve at; 0 for a free one."""
    browser: bool = True
    """Open the page in the browser of this machine."""


def parse_args(argv: Sequence[str]) -> ExploreArgs:
    return parse(ExploreArgs, __doc__ or "", argv)


def main(args: ExploreArgs) -> None:
    """Serve or export the map."""
    announce(f"explore: {args.embeddings}")
    from pipelines.jobs import explore

    explore.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
