"""What a preprocess job would take, from a sample of its clips. Writes nothing."""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ajepa.audio.errors import AudioError
from ajepa.audio.logmel import LogMel
from ajepa.audio.manifest import Manifest
from ajepa.audio.read_ahead import read_ahead
from ajepa.config import FrontEndConfig
from ajepa.shards.writer import make_row

SAMPLE = 64  # clips, spread evenly over the manifest


@dataclass(frozen=True)
class Estimate:
    """A job's size and cost, scaled up from a sample."""

    clips: int
    sampled: int
    errors: Counter[str]  # stage of the failures in the sample
    hours: float  # of audio in good clips
    gigabytes: float  # of shards
    core_hours: float

    def lines(self, cores: int) -> list[str]:
        """For people. The first one counts, the others estimate."""
        failed = self.errors.total()
        stages = ", ".join(f"{count} {stage}" for stage, count in sorted(self.errors.items()))
        minutes = 60 * self.core_hours / cores
        return [
            f"{self.clips} clips; of {self.sampled} sampled, {failed} would fail ({failed / self.sampled:.1%})"
            + (f": {stages}" if stages else ""),
            f"about {self.hours:.2f} h of audio in {self.gigabytes:.2f} GB of shards",
            f"about {self.core_hours:.3f} core-hours, {minutes:.1f} minutes on {cores} cores after Ray's start",
        ]


def estimate(manifest: Manifest, config: FrontEndConfig) -> Estimate:
    """Decode and featurise a sample with one thread and scale up."""
    clips = manifest.clips.num_rows
    chosen = np.unique(np.linspace(0, clips - 1, min(SAMPLE, clips)).round().astype(int))
    front_end, errors, frames, good = LogMel(config), Counter[str](), 0, 0
    torch.set_num_threads(1)
    sample = manifest.clips.take(chosen).to_pylist()
    with torch.inference_mode(), read_ahead(sample) as opener:
        start = time.perf_counter()
        for clip in tqdm(sample, unit="clip", desc="sample", disable=None):
            try:
                row, _ = make_row(clip, front_end, opener)
            except AudioError as error:
                errors[str(error).partition(":")[0]] += 1
            else:
                frames, good = frames + row["num_frames"], good + 1
        seconds = time.perf_counter() - start
    scale = clips / len(chosen)
    return Estimate(
        clips=clips,
        sampled=len(chosen),
        errors=errors,
        hours=scale * frames / config.frame_rate / 3600,
        gigabytes=scale * good * 2 * config.n_mels * config.clip_frames / 1e9,
        core_hours=scale * seconds / 3600,
    )
