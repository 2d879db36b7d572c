"""Embeddings of audio files or shards as Parquet, in one Ray Data job. Interrupted at any time, the same command goes
on. With --neighbours QUERY.wav --output EMB, print the clips of a finished folder that are most like a recording."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import ajepa
from ajepa import storage
from ajepa.audio.blocks import block_sizes
from ajepa.audio.errors import AudioError
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest
from ajepa.audio.segments import segment
from ajepa.audio.sources import chosen_columns, load_manifest
from ajepa.checkpoints import latest_checkpoint
from ajepa.choices import Branch
from ajepa.documents import refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.inference.embedder import Embedder, EmbedSettings, part_path
from ajepa.inference.embeddings import EMBEDDINGS_JSON, Embeddings, finish_embeddings, open_embeddings
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.neighbours import Neighbour, nearest
from ajepa.inference.pretrained import EXPORT_JSON, load_encoder
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, open_dataset
from ajepa.shards.schema import BAD, OK
from pipelines.cli.lock import claimed
from pipelines.cli.output import warn_relative_output
from pipelines.rayjobs.cluster import cluster_cpus, cluster_resource, join_cluster, start_ray
from pipelines.rayjobs.data_job import run_blocks, unfinished
from pipelines.rayjobs.each import on_cluster
from pipelines.rayjobs.early import refuse_other
from pipelines.rayjobs.embed_actors import ActorSettings, EmbedActor
from pipelines.rayjobs.plan import ClipJob, block_size, manifest_hash, prepare_output
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining, recorded_uri

if TYPE_CHECKING:  # the commands import this module
    from pipelines.embed import EmbedArgs, NeighboursArgs

EMBEDDINGS = ClipJob("embedding folder", "embedding job", EMBEDDINGS_JSON, f"{PLAN}/embed.json", open_embeddings)


@dataclass(frozen=True)
class Clips:
    """The clips of a job: files of a manifest, or the rows of shards, whose own bad clips are left out."""

    source: str
    manifest: Manifest
    dataset: ShardDataset | None
    part_size: int  # 0: a part a shard
    sizes: list[int]  # clips of each part

    def ids(self) -> pa.ChunkedArray:
        """Their ids, part after part."""
        return (self.manifest.clips if self.dataset is None else self.dataset.read_columns(["clip_id"]))["clip_id"]

    @property
    def hash(self) -> str:
        return manifest_hash(self.manifest.clips) if self.dataset is None else self.dataset.content_hash


def list_clips(args: EmbedArgs, encoder: AudioEncoder) -> Clips:
    """The clips of the input, in parts.

    Raises:
        UserError: nothing there, options that do not fit the source, or shards of another front end.
    """
    shards = args.source == "folder" and storage.path_type(storage.join(args.input, DATASET_JSON)) == "file"
    if args.source != "shards" and not shards:
        manifest = load_manifest(
            args.source, args.input, labels_from_folders=args.labels_from_folders, columns=args.columns,
            each=on_cluster,
        )  # fmt: skip
        if args.segment is not None:
            manifest = segment(manifest, args.segment, args.segment_last, encoder.front_end)
        total = manifest.clips.num_rows
        size = block_size(total, args.clips_per_part, "--clips-per-part")
        sizes = block_sizes(manifest.clips, size)
        return Clips(args.source, manifest, None, size, sizes)
    for name in ("labels_from_folders", "segment", "clips_per_part", "columns"):
        if getattr(args, name) not in (None, False, ()):
            raise UserError(f"--{name.replace('_', '-')} is for audio files; {args.input!r} holds shards")
    dataset = open_dataset(args.input)
    dataset.require_front_end(encoder.front_end)
    dataset.check_shards()
    left_out = f"{dataset.num_failed} clips of the shards were bad already and are left out"
    remarks = (left_out,) if dataset.num_failed else ()
    manifest = Manifest(MANIFEST_SCHEMA.empty_table(), list(dataset.label_names), remarks)
    return Clips("shards", manifest, dataset, 0, [shard.rows for shard in dataset.shards])


def main(args: EmbedArgs) -> Embeddings:
    """Run the job described by the arguments; returns the finished folder."""
    warn_relative_output(args.output)
    output = storage.absolute(args.output)
    storage.resolve(output)
    check(args)
    path = storage.absolute(args.encoder)
    exported = storage.path_type(storage.join(path, EXPORT_JSON)) == "file"
    checkpoint = path if exported else latest_checkpoint(path)
    encoder = load_encoder(checkpoint, args.branch, precision=args.precision)
    chosen = EmbedSettings(level=args.level, pooling=args.pooling, layers=args.layers, max_seconds=args.max_seconds)
    embedder = Embedder(encoder, chosen)
    origin = pretraining(path)
    with claimed(output):
        # To list and measure the files may take hours: whatever can be refused without them is refused first.
        refuse_other(output, EMBEDDINGS, args.overwrite)
        uri = mlflow_run.tracking_uri(args.mlflow_uri or recorded_uri(origin), output)
        mlflow_run.require_store(uri)
        join_cluster({"--output": output, "--encoder": path, "--input": storage.absolute(args.input)})
        clips = list_clips(args, encoder)
        for remark in clips.manifest.remarks:
            print(f"note: {remark}", flush=True)
        plan = {
            "source": clips.source, "input": storage.absolute(args.input), "clips": sum(clips.sizes),
            "input_hash": clips.hash, "part_size": clips.part_size, "label_names": clips.manifest.label_names,
            "encoder_digest": encoder.about["digest"], "precision": args.precision, **dataclasses.asdict(chosen),
        }  # fmt: skip
        finished = prepare_output(output, EMBEDDINGS, plan, clips.manifest, clips.sizes, args.overwrite)
        if finished is not None:
            mlflow_run.send_unsent(output, uri)
            print(f"nothing to do: {output} is finished ({finished.num_clips} clips x {finished.dimension})")
            return finished
        tracker = mlflow_run.start_run(
            uri,
            f"embed {args.level}",
            output=output,
            params={**{k: v for k, v in plan.items() if k != "label_names"}, "encoder": path, "output": output,
                    "step": encoder.about["step"], "dataset_hash": encoder.about["dataset_hash"]},
            tags={"ajepa.job": "embed", "ajepa.pretrain_run": origin.get("mlflow_run", "")},
        )  # fmt: skip
        with tracker.recording():
            settings = ActorSettings(
                encoder=checkpoint, branch=args.branch, digest=plan["encoder_digest"], precision=args.precision,
                device="cpu", threads=1, batch_size=args.batch_size, embed=chosen, output=output,
                shards=None if clips.dataset is None else clips.dataset.path,
            )  # fmt: skip
            totals = embed_all(clips, settings, args.num_workers)
            about = {
                "level": args.level,
                "pooling": args.pooling if args.level == "clip" else None,
                "layers": args.layers,
                "dimension": embedder.dimension,
                "hop_ms": embedder.hop_ms if args.level != "clip" else None,
                "rows": encoder.rows if args.level == "patch" else None,
                "encoder": encoder.about | {"source": path, "checkpoint": checkpoint, "precision": args.precision},
                "input": {"source": clips.source, "path": plan["input"], "hash": clips.hash},
                "label_names": clips.manifest.label_names,
                "plan": plan,
                "remarks": clips.manifest.remarks,
                "mlflow_run": tracker.run_id,
                "version": ajepa.__version__,
            }
            embeddings = finish_embeddings(output, plan["clips"], about)
            storage.delete(storage.join(output, PLAN))
            rate = totals["clips"] / max(totals["seconds"], 1e-9)
            tracker.log_metrics(0, {
                "clips_ok": embeddings.num_clips, "clips_bad": embeddings.num_failed,
                "hours": embeddings.info["counts"]["hours"], "seconds": totals["seconds"], "clips_per_second": rate,
            })  # fmt: skip
            tracker.log_text(json.dumps(embeddings.info, indent=1), EMBEDDINGS_JSON)
            model = log_model(tracker, checkpoint, args.branch) if args.log_model else None
        _print_summary(embeddings, totals, rate, model)
        return embeddings


def embed_all(clips: Clips, settings: ActorSettings, num_workers: int | None) -> dict[str, Any]:
    """Write the parts that are missing, with live progress; totals of this part of the job.

    Raises:
        UserError: more workers than the cluster has GPUs or CPUs, or what stopped the job.
    """
    paths = [part_path(settings.output, OK, i) for i in range(len(clips.sizes))]
    todo = unfinished(settings.output, paths, clips.sizes, clips.ids, "parts")
    missing = sum(clips.sizes[i] for i in todo)
    if not todo:
        return run_blocks("embed", todo, missing, EmbedActor)
    from ray.data import ActorPoolStrategy

    start_ray(dashboard=False)
    gpus, cpus = cluster_resource("GPU"), cluster_cpus()
    have, resource = (gpus, "GPU") if gpus else (cpus, "CPU")
    if (num_workers or 1) > have:
        raise UserError(f"--num-workers {num_workers} needs as many {resource}s; the cluster has {have}")
    workers = min(num_workers or have, len(todo))
    threads = max(1, cpus // workers) if gpus else 1
    settings = dataclasses.replace(settings, device="cuda" if gpus else "cpu", threads=threads)
    return run_blocks(
        "embed", todo, missing, EmbedActor,
        fn_constructor_args=(settings,),
        # A part at a time: parts that wait in one actor's queue are missed by another that is free.
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=threads,
        num_gpus=1 if gpus else None,
    )  # fmt: skip


def log_model(tracker: mlflow_run.Tracker, checkpoint: str, branch: Branch | None) -> str | None:
    """Log the encoder as a model; None where MLflow does not take it, which the embeddings do not need."""
    from pipelines.tracking.logged_model import log_encoder  # MLflow's models take seconds to import

    try:
        return log_encoder(tracker, checkpoint, branch)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def check(args: EmbedArgs) -> None:
    """Options that can never go together."""
    for name in ("num_workers", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if args.max_seconds <= 0:
        raise UserError(f"--max-seconds must be positive, got {args.max_seconds:g}")
    block_size(0, args.clips_per_part, "--clips-per-part")
    if args.source != "shards":
        chosen_columns(args.source, args.columns)
    if args.level != "clip" and args.pooling != "mean":
        raise UserError(f"--pooling is for --level clip; every {args.level} has its own vector")


def neighbours(args: NeighboursArgs) -> list[Neighbour]:
    """Embed the recording as the folder's clips were, and print the nearest of them."""
    if args.top < 1:
        raise UserError(f"--top must be positive, got {args.top}")
    embeddings = open_embeddings(args.output)
    about = embeddings.encoder
    with refusing_damage(storage.join(embeddings.path, EMBEDDINGS_JSON), "embed the clips again"):
        require_types(about, checkpoint=str, source=str, branch=str, precision=str, digest=str)
        plan = embeddings.info["plan"]
        chosen = {field.name: plan[field.name] for field in dataclasses.fields(EmbedSettings)}
        settings = EmbedSettings(**chosen | {"layers": chosen["layers"] and tuple(chosen["layers"])})
    kept = storage.path_type(about["checkpoint"]) != "missing"  # not pruned by more training since
    source = args.encoder or about["checkpoint" if kept else "source"]
    try:
        encoder = load_encoder(source, about["branch"], precision=about["precision"])
    except UserError as error:
        raise UserError(f"cannot load the encoder of these embeddings: {error} (--encoder says where it is)") from error
    if encoder.about["digest"] != about["digest"]:
        raise UserError(
            f"the embeddings were made by another encoder than {source!r} (digest {about['digest']}, not "
            f"{encoder.about['digest']}): give theirs with --encoder"
        )
    embedder = Embedder(encoder, settings)
    query = {"uri": storage.absolute(args.neighbours), "start_s": 0.0, "duration_s": None}
    try:
        log_mel, _, _ = embedder.log_mel(query)
    except (AudioError, storage.UnreachableError) as error:
        raise UserError(f"--neighbours {args.neighbours!r}: {error}") from error
    found = nearest(embeddings, embedder.embed([log_mel])[0][0], args.top)
    width = max(len(n.clip_id) for n in found)
    for rank, n in enumerate(found, 1):
        at = f" from {n.start_s:g} s" if n.start_s else ""
        print(f"{rank:3d}  {n.similarity:+.4f}  {n.clip_id:{width}s}  {n.uri}{at}  {', '.join(n.labels)}".rstrip())
    print(f"{len(found)} of {embeddings.num_clips} clips in {embeddings.path}, cosine similarity")
    return found


def _print_summary(embeddings: Embeddings, totals: dict[str, Any], rate: float, model: str | None) -> None:
    info = embeddings.info
    if totals["cut"]:
        print(f"note: {totals['cut']} clips were longer than {info['plan']['max_seconds']:g} s and cut (--max-seconds)")
    if model:
        print(f"encoder logged as {model}")
    stages = ", ".join(f"{n} {stage}" for stage, n in sorted(info["counts"]["bad_by_stage"].items()))
    print(
        f"{embeddings.num_clips} clips ok, {embeddings.num_failed} bad{f' ({stages}; see {BAD})' if stages else ''}, "
        f"{embeddings.level} embeddings of {embeddings.dimension} in {len(embeddings.parts)} parts at "
        f"{embeddings.path}; {totals['seconds']:.1f} s, {rate:.0f} clips/s"
    )
