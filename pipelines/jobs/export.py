"""Put a trained encoder into a small folder of its own: weights, architecture, front end and statistics; or, without
need of ajepa, into a folder for Hugging Face transformers, ONNX or a torch.export program."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.checkpoints import latest_checkpoint
from ajepa.choices import GraphFormat
from ajepa.errors import UserError
from ajepa.finetuning.classifier import find_classifier
from ajepa.finetuning.handing_on import read_finetuned
from ajepa.inference.card import model_card
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.graph import EXPORTERS, export_graph
from ajepa.inference.pretrained import (
    CARD,
    EXPORT_JSON,
    EXPORT_WEIGHTS,
    ORIGIN,
    export_encoder,
    facts_of,
    known_facts,
    load_encoder,
    round_weights,
)
from ajepa.inference.shipped import encoder_path
from ajepa.inference.transformers_folder import origin, write_transformers, written_origin
from pipelines.cli.lock import claimed
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import exported_runs, pretraining, recorded_uri

if TYPE_CHECKING:  # the commands import this module
    from pipelines.export import ExportArgs


def main(args: ExportArgs) -> None:
    """Export, and say how to load it."""
    if args.weights != "float32" and args.format != "safetensors":
        raise UserError(f"--weights {args.weights} is for --format safetensors, not for {args.format}")
    args = dataclasses.replace(args, run=encoder_path(args.run))
    with claimed(args.output):
        if args.format == "safetensors":
            export_folder(args)
            return
        if args.log_model == "on":
            raise UserError("--log-model: MLflow takes the export folder; leave out --format")
        if args.format == "transformers":
            export_for_transformers(args)
        else:
            export_file(args, args.format)


def export_file(args: ExportArgs, format: GraphFormat) -> None:
    """Write a graph, and a model card where the folder has none."""
    encoder = load_encoder(args.run, args.branch)
    path = export_graph(encoder, args.output, format)
    card = storage.join(storage.absolute(args.output), CARD)
    if storage.path_type(card) != "file":
        storage.write_text(card, model_card(facts_of(encoder, known_facts(args.run, encoder)), format))
    size = dict(storage.list_files(storage.absolute(args.output)))[path.rsplit("/", 1)[-1]]
    print(
        f"{encoder.about['branch']} encoder {encoder.depth} x {encoder.width} of step {encoder.about['step']}: "
        f"{size / 1e6:.1f} MB in {path}; float32 waveform [batch, samples] at {encoder.sample_rate} Hz to clip and "
        f"frame embeddings: {EXPORTERS[format].load.format(path=path)}"
    )


def export_for_transformers(args: ExportArgs) -> None:
    """Write the folder that transformers loads: of an encoder, or of a fine-tuned model."""
    folder = find_classifier(args.run)
    encoder, head, known = read_encoder(args) if folder is None else read_finetuned(folder, args.branch)
    if written_origin(args.output) == origin(encoder, head):
        print(f"nothing to do: {args.output} holds this {'encoder' if head is None else 'classifier'}")
        return
    write_transformers(args.output, encoder, known, head)
    size = sum(size for _, size in storage.list_files(storage.absolute(args.output)))
    what, auto = "encoder", "AutoModel"
    if head is not None:
        what, auto = f"classifier of {len(head.label_names)} labels", "AutoModelForAudioClassification"
    print(
        f"{what} {encoder.depth} x {encoder.width} of step {encoder.about['step']}: {size / 1e6:.1f} MB in "
        f'{args.output}; without ajepa: transformers.{auto}.from_pretrained("{args.output}", trust_remote_code=True)'
    )


def read_encoder(args: ExportArgs) -> tuple[AudioEncoder, None, dict[str, Any]]:
    """The encoder and what is recorded of it."""
    encoder = load_encoder(args.run, args.branch)
    return encoder, None, known_facts(args.run, encoder)


def export_folder(args: ExportArgs) -> None:
    """Write the folder that load_encoder reads, and log it to MLflow.

    Raises:
        UserError: it is to be made of such a folder.
    """
    if storage.path_type(storage.join(storage.absolute(args.run), EXPORT_JSON)) == "file":
        raise UserError(f"{args.run!r} is an export already: copy it, or name another --format to make of it")
    origin = pretraining(args.run)
    uri = model_uri(args, origin)
    if uri is not None:
        mlflow_run.require_store(uri)
    if (done := finished(args)) is not None:
        again = uri is not None and (args.log_model == "on" or mlflow_run.has_unsent(storage.absolute(args.output)))
        print(f"nothing to {'write' if again else 'do'}: {args.output} holds this encoder")
        if uri is not None and again:
            log_model(args, origin, done, uri, resumed="")
        return
    about = export_encoder(args.run, args.output, args.branch, exported_runs(origin), args.weights)
    size = dict(storage.list_files(args.output))[EXPORT_WEIGHTS]
    model = about["model"]
    print(
        f"{about['branch']} encoder {model['depth']} x {model['width']} of step {about['step']} from "
        f"{latest_checkpoint(storage.absolute(args.run))}: {size / 1e6:.1f} MB in {args.output}; "
        f'load it with ajepa.load_encoder("{args.output}")'
    )
    if uri is not None:
        log_model(args, origin, about, uri)


def finished(args: ExportArgs) -> dict[str, Any] | None:
    """What the export at the output says of itself, where it holds what this command would write."""
    output = storage.absolute(args.output)
    where = storage.join(output, EXPORT_JSON)
    if storage.path_type(where) != "file":
        return None
    encoder = load_encoder(latest_checkpoint(storage.absolute(args.run)), args.branch)
    if args.weights == "float16":
        round_weights(encoder)
    wanted = encoder.about
    try:
        there = load_encoder(output).about
    except UserError:  # a damaged one is in the way, as anything else
        return None
    same = all(there[name] == wanted[name] for name in (*ORIGIN, "digest"))
    return json.loads(storage.read_text(where)) if same else None


def model_uri(args: ExportArgs, origin: dict[str, str]) -> str | None:
    """Where the encoder is to be logged, None for nowhere.

    Raises:
        UserError: it is asked for and no tracking URI is known.
    """
    if args.log_model == "off":
        return None
    known = args.mlflow_uri or recorded_uri(origin)
    if known or os.environ.get("MLFLOW_TRACKING_URI"):
        return mlflow_run.tracking_uri(known, args.output)
    if args.log_model == "on":
        raise UserError("--log-model: the run does not say where MLflow is; give --mlflow-uri")
    return None


def log_model(
    args: ExportArgs, origin: dict[str, str], about: dict[str, Any], uri: str, resumed: str | None = None
) -> None:
    """Record the export and its model. With `resumed` "" it is the run that an earlier command could not send."""
    from pipelines.tracking.logged_model import log_encoder  # MLflow's models take seconds to import

    tracker = mlflow_run.start_run(
        uri,
        "export",
        output=storage.absolute(args.output),
        params={"run": storage.absolute(args.run), "output": storage.absolute(args.output)}
        | {name: about[name] for name in (*ORIGIN, "digest")},
        tags={"ajepa.job": "export", "ajepa.pretrain_run": origin.get("mlflow_run", "")},
        resumed=resumed,
    )
    with tracker.recording():
        try:
            model = log_encoder(tracker, args.output)
            tracker.describe(f"The {about['branch']} encoder of step {about['step']} as the model `{model}`")
        except UserError as error:
            if args.log_model == "on":
                raise
            print(f"warning: {error}", file=sys.stderr)
            return
    print(f'MLflow model {model} at {mlflow_run.shown(uri)}: mlflow.pyfunc.load_model("{model}").predict(waveforms)')
