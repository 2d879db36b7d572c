"""Put a trained encoder into a small folder of its own: weights, architecture, front end and statistics; or, without
need of ajepa, into a folder for Hugging Face transformers, ONNX or a torch.export program."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ajepa.choices import Branch, ExportFormat, StoredWeights
from pipelines.cli.arguments import parse
from pipelines.cli.command import announce, run_command


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Export an encoder."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run folder (its newest checkpoint) or one checkpoint; but for safetensors also an export; for transformers also
    a fine-tuned model; a local path or a URI; or `nano`, which comes with ajepa."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """The folder to make; a local path or a URI. A graph may also go into a folder that is there."""
    format: ExportFormat = "safetensors"
    """safetensors: what ajepa.load_encoder reads (encoder.safetensors and encoder.json). transformers: what AutoModel
    reads, without ajepa; of a fine-tuned model, AutoModelForAudioClassification. onnx, torch: waveform to embeddings as
    one graph, in encoder.onnx or encoder.pt2 (torch.export)."""
    branch: Branch | None = None
    """Which encoder of the run: the EMA target encoder or the context encoder; by default the one that its objective
    evaluates."""
    weights: StoredWeights = "float32"
    """What the weights of safetensors are stored in. float16 halves the folder; loaded, they are float32 again."""
    log_model: Literal["auto", "on", "off"] = "auto"
    """Log the encoder to MLflow as a model too; by default where a tracking URI is known."""
    mlflow_uri: str | None = None
    """MLflow tracking URI; by default the pretraining run's or $MLFLOW_TRACKING_URI."""


def parse_args(argv: Sequence[str]) -> ExportArgs:
    return parse(ExportArgs, __doc__ or "", argv)


def main(args: ExportArgs) -> None:
    """Export the encoder the arguments name."""
    announce(f"export: {args.run} -> {args.output}")
    from pipelines.jobs import export

    export.main(args)


if __name__ == "__main__":
    run_command(lambda: main(parse_args(sys.argv[1:])))
