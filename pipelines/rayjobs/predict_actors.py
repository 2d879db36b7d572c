"""The actors of the predict job. Imports what they use and no more."""

from dataclasses import dataclass

from ajepa.finetuning.audio_classifier import load_classifier
from ajepa.finetuning.predictor import Predictor, PredictSettings
from ajepa.inference.part_writer import PartWriter
from pipelines.rayjobs.part_actors import ActorSettings, PartActor


@dataclass(frozen=True, kw_only=True)
class PredictActorSettings(ActorSettings):
    """All that an actor needs."""

    model: str
    predict: PredictSettings


class PredictActor(PartActor[PredictActorSettings]):
    """Holds a fine-tuned model."""

    @property
    def source(self) -> str:
        return f"the model at {self.settings.model!r}"

    def load(self) -> tuple[PartWriter, str]:
        s = self.settings
        classifier = load_classifier(s.model, device=s.device, precision=s.precision)
        return Predictor(classifier, s.predict, batch_size=s.batch_size, threads=s.threads), classifier.digest
