"""The encoder that a fine-tuning starts from: a pretrained one, or a random initialisation of each seed."""

from dataclasses import dataclass
from typing import Final

from ajepa.choices import Branch
from ajepa.config import ModelConfig
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder, random_encoder
from ajepa.shards.dataset import ShardDataset

SUPERVISED: Final = "supervised"  # in place of an objective's name in exports of what was never pretrained


@dataclass(frozen=True)
class Pretrained:
    """The encoder of a run folder, a checkpoint or an export; see `load_encoder`."""

    path: str
    branch: Branch | None = None

    def seed_of(self, seed: int) -> int:
        """The seed that the encoder depends on, of a training's: the same one for all."""
        return 0

    def encoder(self, dataset: ShardDataset, seed: int) -> AudioEncoder:
        return load_encoder(self.path, self.branch)


@dataclass(frozen=True)
class FromScratch:
    """The supervised baseline: the initialisation that pretraining with the same seed starts from, with the front end
    and the statistics of the data it is trained on."""

    model: ModelConfig

    def seed_of(self, seed: int) -> int:
        """The seed that the encoder depends on, of a training's: its own."""
        return seed

    def encoder(self, dataset: ShardDataset, seed: int) -> AudioEncoder:
        audio = random_encoder(self.model, seed, dataset.front_end, dataset.statistics)
        audio.about |= {"objective": SUPERVISED, "branch": "context", "step": 0, "dataset_hash": dataset.content_hash}
        return audio
