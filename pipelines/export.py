"""Put a trained encoder into a small folder of its own: weights, architecture, front end and statistics."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from ajepa import storage
from ajepa.pretrained import EXPORT_WEIGHTS, Branch, export_encoder
from ajepa.training.checkpoint import latest_checkpoint
from pipelines.common import parse, run_command


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Export an encoder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint) or one checkpoint; a local path or a URI."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make; a local path or a URI."""
    branch: Branch = "target"
    """Which encoder of the run: the EMA target encoder or the context encoder."""


def main(args: ExportArgs) -> None:
    """Export, and say how to load it."""
    about = export_encoder(args.run, args.output, args.branch)
    size = dict(storage.list_files(args.output))[EXPORT_WEIGHTS]
    model = about["model"]
    print(
        f"{args.branch} encoder {model['depth']} x {model['width']} of step {about['step']} from "
        f"{latest_checkpoint(storage.absolute(args.run))}: {size / 1e6:.1f} MB in {args.output}; "
        f'load it with ajepa.load_encoder("{args.output}")'
    )


if __name__ == "__main__":
    run_command(lambda: main(parse(ExportArgs, __doc__ or "", sys.argv[1:])))
