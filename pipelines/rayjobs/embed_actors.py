"""The actors of the embed job. Imports what they use and no more."""

from dataclasses import dataclass

from ajepa.choices import Branch
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.part_writer import PartWriter
from ajepa.inference.pretrained import load_encoder
from pipelines.rayjobs.part_actors import ActorSettings, PartActor


@dataclass(frozen=True, kw_only=True)
class EmbedActorSettings(ActorSettings):
    """All that an actor needs."""

    encoder: str  # of one checkpoint or export: a run folder's newest one may change meanwhile
    branch: Branch | None
    embed: EmbedSettings


class EmbedActor(PartActor[EmbedActorSettings]):
    """Holds an encoder."""

    @property
    def source(self) -> str:
        return f"the encoder at {self.settings.encoder!r}"

    def load(self) -> tuple[PartWriter, str]:
        s = self.settings
        encoder = load_encoder(s.encoder, s.branch, device=s.device, precision=s.precision)
        return Embedder(encoder, s.embed, batch_size=s.batch_size, threads=s.threads), encoder.about["digest"]
