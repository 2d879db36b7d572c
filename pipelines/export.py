"""Put a trained encoder into a small folder of its own: weights, architecture, front end and statistics."""

import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from ajepa import storage
from ajepa.errors import UserError
from ajepa.pretrained import EXPORT_WEIGHTS, Branch, export_encoder
from ajepa.training.checkpoint import latest_checkpoint
from pipelines import tracking
from pipelines.common import parse, run_command
from pipelines.lineage import pretraining, recorded_uri


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Export an encoder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint) or one checkpoint; a local path or a URI."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make; a local path or a URI."""
    branch: Branch = "target"
    """Which encoder of the run: the EMA target encoder or the context encoder."""
    log_model: bool | None = None
    """Log the encoder to MLflow as a model too; by default where a tracking URI is known."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's or $MLFLOW_TRACKING_URI."""


def main(args: ExportArgs) -> None:
    """Export, and say how to load it."""
    origin = pretraining(args.run)
    uri = model_uri(args, origin)
    # The run's id alone: the address of a tracking server may hold a password, and an export is handed on.
    notes = {name: origin[name] for name in ("mlflow_run",) if name in origin}
    about = export_encoder(args.run, args.output, args.branch, notes=notes)
    size = dict(storage.list_files(args.output))[EXPORT_WEIGHTS]
    model = about["model"]
    print(
        f"{args.branch} encoder {model['depth']} x {model['width']} of step {about['step']} from "
        f"{latest_checkpoint(storage.absolute(args.run))}: {size / 1e6:.1f} MB in {args.output}; "
        f'load it with ajepa.load_encoder("{args.output}")'
    )
    if uri is not None:
        log_model(args, origin, about, uri)


def model_uri(args: ExportArgs, origin: dict[str, str]) -> str | None:
    """Where the encoder is to be logged, None for nowhere.

    Raises:
        UserError: it is asked for and no tracking URI is known.
    """
    if args.log_model is False:
        return None
    known = args.mlflow_uri or recorded_uri(origin)
    if known or os.environ.get("MLFLOW_TRACKING_URI"):
        return tracking.tracking_uri(known, args.output)
    if args.log_model:
        raise UserError("--log-model: the run does not say where MLflow is; give --mlflow-uri")
    return None


def log_model(args: ExportArgs, origin: dict[str, str], about: dict[str, object], uri: str) -> None:
    from pipelines.logged_model import log_encoder  # MLflow's models take seconds to import

    tracker = tracking.start_run(
        uri,
        "export",
        params={"run": storage.absolute(args.run), "output": storage.absolute(args.output)}
        | {name: about[name] for name in ("branch", "step", "dataset_hash", "digest")},
        tags={"ajepa.job": "export", "ajepa.pretrain_run": origin.get("mlflow_run", "")},
    )
    with tracker.recording():
        model = log_encoder(tracker, args.output)
    print(f'MLflow model {model} at {uri}: mlflow.pyfunc.load_model("{model}").predict(waveforms)')


if __name__ == "__main__":
    run_command(lambda: main(parse(ExportArgs, __doc__ or "", sys.argv[1:])))
