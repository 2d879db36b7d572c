"""Embeddings of audio files or shards as Parquet, in one Ray Data job. Interrupted at any time, the same command goes
on. With --neighbours QUERY.wav --output EMB, print the clips of a finished folder that are most like a recording."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.checkpoints import latest_checkpoint
from ajepa.choices import Branch
from ajepa.errors import UserError
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.embeddings import EMBEDDINGS_JSON, Embeddings, finish_embeddings, open_embeddings
from ajepa.inference.neighbours import Neighbour, nearest
from ajepa.inference.pretrained import EXPORT_JSON, load_encoder
from ajepa.inference.query import embedder_of, vector_of
from ajepa.inference.shipped import encoder_path, shipped_name
from ajepa.shards.dataset import PLAN
from pipelines.jobs.parts import PartJob, check, output_of, run_job
from pipelines.rayjobs.embed_actors import EmbedActor, EmbedActorSettings
from pipelines.rayjobs.plan import ClipJob
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining

if TYPE_CHECKING:  # the commands import this module
    from pipelines.embed import EmbedArgs, NeighboursArgs

EMBEDDINGS = ClipJob("embedding folder", "embedding job", EMBEDDINGS_JSON, f"{PLAN}/embed.json", open_embeddings)


@dataclass(frozen=True, kw_only=True)
class EmbedJob(PartJob[Embeddings]):
    """Vectors of an encoder."""

    embedder: Embedder
    checkpoint: str
    branch: Branch | None
    log_model: bool

    def finish(self, output: str, expected: int, about: dict[str, Any]) -> Embeddings:
        settings, encoder = self.embedder.settings, self.embedder.encoder
        level = settings.level
        origin = {"source": self.model[1], "checkpoint": self.checkpoint, "precision": self.settings["precision"]}
        described = {
            "level": level,
            "pooling": settings.pooling if level == "clip" else None,
            "layers": settings.layers,
            "dimension": self.embedder.dimension,
            "hop_ms": self.embedder.hop_ms if level != "clip" else None,
            "rows": encoder.rows if level == "patch" else None,
            "encoder": encoder.about | origin,
        }
        return finish_embeddings(output, expected, described | about)

    def result(self, finished: Embeddings) -> str:
        return f"{finished.level} embeddings of {finished.dimension}"

    def after(self, finished: Embeddings, tracker: mlflow_run.Tracker | None) -> None:
        if self.log_model and tracker is not None:
            model = log_model(tracker, self.checkpoint, self.branch)
            if model:
                print(f"encoder logged as {model}")


def main(args: EmbedArgs) -> Embeddings:
    """Run the job described by the arguments; returns the finished folder."""
    output = output_of(args)
    check(args)
    if args.level != "clip" and args.pooling != "mean":
        raise UserError(f"--pooling is for --level clip; every {args.level} has its own vector")
    path = encoder_path(args.encoder)
    exported = storage.path_type(storage.join(path, EXPORT_JSON)) == "file"
    # Every node has its own copy of an encoder that comes with the package.
    name = shipped_name(path)
    checkpoint = name or (path if exported else latest_checkpoint(path))
    encoder = load_encoder(checkpoint, args.branch, precision=args.precision)
    chosen = EmbedSettings(level=args.level, pooling=args.pooling, layers=args.layers, max_seconds=args.max_seconds)
    digest = encoder.about["digest"]
    return run_job(args, EmbedJob(
        name="embed",
        title=f"embed {args.level}",
        kind=EMBEDDINGS,
        model=("--encoder", name or path),
        front_end=encoder.front_end,
        origin=pretraining(path),
        settings={"encoder_digest": digest, "precision": args.precision, **dataclasses.asdict(chosen)},
        params={"step": encoder.about["step"], "dataset_hash": encoder.about["dataset_hash"]},
        tags={},
        actor=EmbedActor,
        actor_settings=EmbedActorSettings(
            encoder=checkpoint, branch=args.branch, digest=digest, precision=args.precision,
            batch_size=args.batch_size, embed=chosen, output=output,
        ),
        embedder=Embedder(encoder, chosen),
        checkpoint=checkpoint,
        branch=args.branch,
        log_model=args.log_model,
    ))  # fmt: skip


def log_model(tracker: mlflow_run.Tracker, checkpoint: str, branch: Branch | None) -> str | None:
    """Log the encoder as a model; None where MLflow does not take it, which the embeddings do not need."""
    from pipelines.tracking.logged_model import log_encoder  # MLflow's models take seconds to import

    try:
        return log_encoder(tracker, checkpoint, branch)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def neighbours(args: NeighboursArgs) -> list[Neighbour]:
    """Embed the recording as the folder's clips were, and print the nearest of them."""
    if args.top < 1:
        raise UserError(f"--top must be positive, got {args.top}")
    embeddings = open_embeddings(args.output)
    embedder = embedder_of(embeddings, args.encoder)
    try:
        query = vector_of(embedder, args.neighbours)
    except UserError as error:
        raise UserError(f"--neighbours {args.neighbours!r}: {error}") from error
    found = nearest(embeddings, query, args.top)
    width = max(len(n.clip_id) for n in found)
    for rank, n in enumerate(found, 1):
        at = f" from {n.start_s:g} s" if n.start_s else ""
        print(f"{rank:3d}  {n.similarity:+.4f}  {n.clip_id:{width}s}  {n.uri}{at}  {', '.join(n.labels)}".rstrip())
    print(f"{len(found)} of {embeddings.num_clips} clips in {embeddings.path}, cosine similarity")
    return found
