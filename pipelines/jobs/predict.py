"""Predictions of a fine-tuned model for audio files or shards as Parquet, and as CSV, in one Ray Data job. Interrupted
at any time, the same command goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ajepa import storage
from ajepa.errors import UserError
from ajepa.finetuning.audio_classifier import load_classifier
from ajepa.finetuning.classifier import require_classifier
from ajepa.finetuning.predictions import (
    PREDICTIONS_JSON,
    Predictions,
    agreement,
    finish_predictions,
    open_predictions,
    require_csv,
    unmeasured,
    write_csv,
)
from ajepa.finetuning.predictor import Predictor, PredictSettings
from ajepa.shards.dataset import PLAN
from pipelines.jobs.parts import PartJob, check, output_of, run_job
from pipelines.rayjobs.plan import ClipJob
from pipelines.rayjobs.predict_actors import PredictActor, PredictActorSettings
from pipelines.tracking import mlflow_run
from pipelines.tracking.lineage import pretraining

if TYPE_CHECKING:  # the commands import this module
    from pipelines.predict import PredictArgs

PREDICTIONS = ClipJob("prediction folder", "prediction job", PREDICTIONS_JSON, f"{PLAN}/predict.json", open_predictions)


@dataclass(frozen=True, kw_only=True)
class PredictJob(PartJob[Predictions]):
    """Probabilities of a fine-tuned model."""

    predictor: Predictor
    csv: str | None
    top: int | None
    threshold: float | None

    def finish(self, output: str, expected: int, about: dict[str, Any]) -> Predictions:
        classifier, settings = self.predictor.classifier, self.predictor.settings
        windows = settings.level == "window"
        origin = {"source": self.model[1], "digest": classifier.digest, "precision": self.settings["precision"]}
        described = {
            "level": settings.level,
            "model_labels": classifier.label_names,
            "multi_label": classifier.multi_label,
            "window_s": classifier.window_s if windows else None,
            "hop_s": self.predictor.hop / classifier.audio.front_end.frame_rate if windows else None,
            "model": classifier.audio.about | {"encoder_digest": classifier.audio.about["digest"]} | origin,
        }
        return finish_predictions(output, expected, described | about)

    def result(self, finished: Predictions) -> str:
        return f"{finished.level} probabilities of {len(finished.model_labels)} labels"

    def measure(self, finished: Predictions) -> Mapping[str, float]:
        found = agreement(finished)
        if found is None:
            if finished.label_names:
                print(f"labels of the input: not measured, {unmeasured(finished)}")
            return {}
        others = f"; {found.left_out} clips of other labels left out" if found.left_out else ""
        print(f"labels of the input: {found.metric} {found.score:.3f} on {found.clips} clips{others}")
        return {f"labels_{found.metric}": found.score, "labelled_clips": found.clips}

    def after(self, finished: Predictions, tracker: mlflow_run.Tracker | None) -> None:
        if self.csv is None:
            return
        written = write_csv(finished, self.csv, self.top, self.threshold)
        without = f"; {written.empty} {finished.level}s have no label that is probable enough" if written.empty else ""
        print(f"{written.lines} predictions in {storage.absolute(self.csv)}{without}")


def check_csv(args: PredictArgs) -> None:
    """Options of the CSV file.

    Raises:
        UserError: they make no sense, or the file is something else.
    """
    if args.csv is None:
        for name in ("top", "threshold"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} is for --csv; the Parquet files hold the probabilities of all labels")
        return
    if args.top is not None and args.top < 1:
        raise UserError(f"--top must be positive, got {args.top}")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold is a probability from 0 to 1, got {args.threshold:g}")
    require_csv(args.csv)


def main(args: PredictArgs) -> Predictions:
    """Run the job described by the arguments; returns the finished folder."""
    output = output_of(args)
    check(args)
    check_csv(args)
    path = require_classifier(args.model)
    classifier = load_classifier(path, precision=args.precision)
    chosen = PredictSettings(level=args.level, hop=args.hop, max_seconds=args.max_seconds)
    notes = classifier.audio.about["notes"]
    return run_job(args, PredictJob(
        name="predict",
        title=f"predict {args.level}",
        kind=PREDICTIONS,
        model=("--model", path),
        front_end=classifier.audio.front_end,
        origin=pretraining(path),
        settings={"model_digest": classifier.digest, "precision": args.precision, **dataclasses.asdict(chosen)},
        params={"classes": len(classifier.label_names), "finetuned_on": notes.get("finetuned_on", "")},
        tags={"ajepa.finetune_run": notes.get("finetune_run", "")},
        actor=PredictActor,
        actor_settings=PredictActorSettings(
            model=path, digest=classifier.digest, precision=args.precision, batch_size=args.batch_size,
            predict=chosen, output=output,
        ),
        predictor=Predictor(classifier, chosen),
        csv=args.csv,
        top=args.top,
        threshold=args.threshold,
    ))  # fmt: skip
