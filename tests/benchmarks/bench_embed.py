"""Embedding at scale against a bare loop over the same decoder and model, in one process of one thread.

Run with `make bench`. AJEPA_BENCH_CLIPS scales it: the larger job embeds a fifth of so many clips of 5 s.
"""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile
import torch
from benchmarks.common import CLIPS, ROUNDS, say, seconds, sound

from ajepa.audio.decode import decode
from ajepa.audio.statistics import Statistics
from ajepa.config import PRESETS, FrontEndConfig
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder, write_export
from ajepa.objectives.registry import build_objective
from pipelines.embed import EmbedArgs
from pipelines.jobs.embed import main

pytestmark = pytest.mark.timeout(7_200)
MANY = CLIPS // 5
FEW = MANY // 5
PART = max(1, MANY // 20)  # at both sizes every one of two workers writes as many
BATCH = 16  # clips of 5 s: what the job computes at a time


@pytest.fixture
def two_cpus():
    """A Ray of two CPUs in this process."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING")
    torch.set_num_threads(1)
    yield
    ray.shutdown()


@pytest.fixture
def encoder(tmp_path) -> str:
    """An export of a fresh `nano`."""
    core = build_objective(PRESETS["nano"]).target_encoder
    statistics_ = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)
    about = {"objective": "jepa", "branch": "target", "step": 0, "dataset_hash": ""}
    model = PRESETS["nano"].model
    write_export(str(tmp_path / "nano"), model, FrontEndConfig(), statistics_, core.state_dict(), about)
    return str(tmp_path / "nano")


@pytest.fixture
def manifests(tmp_path) -> dict[int, str]:
    """Manifests by their number of clips: the same 100 mono Vorbis files of 5 s at 44.1 kHz, as ESC-50 has them."""
    files = [str(tmp_path / f"{i}.ogg") for i in range(min(100, MANY))]
    for i, file in enumerate(files):
        soundfile.write(file, sound(5, 44_100, 1, i), 44_100, format="OGG", subtype="VORBIS")
    paths = {}
    for clips in (FEW, MANY):
        paths[clips] = str(tmp_path / f"{clips}.parquet")
        uris = [files[i % len(files)] for i in range(clips)]
        pq.write_table(pa.table({"clip_id": [f"clip{i:07d}" for i in range(clips)], "uri": uris}), paths[clips])
    return paths


def run_job(encoder: str, manifest: str, folder: Path, workers: int) -> float:
    """Seconds of the job with its Ray already running, from the manifest to the finished folder."""
    output = folder / "job"
    args = EmbedArgs(
        encoder=encoder, source="manifest", input=manifest, output=str(output), num_workers=workers,
        clips_per_part=PART, mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )  # fmt: skip
    took = seconds(lambda: main(args))
    shutil.rmtree(output)
    return took


@torch.inference_mode()
def bare_loop(encoder: AudioEncoder, manifest: str) -> None:
    """Decode, log-mel and encoder, a batch after the other; the vectors in one file."""
    uris = pq.read_table(manifest, columns=["uri"])["uri"].to_pylist()
    vectors = []
    for start in range(0, len(uris), BATCH):
        waveforms = [decode(uri, encoder.sample_rate).waveform for uri in uris[start : start + BATCH]]
        vectors.append(encoder.clip_embeddings(waveforms, encoder.sample_rate).numpy())
    np.save(f"{manifest}.npy", np.concatenate(vectors))


def marginal(run: Callable[[str], float], manifests: dict[int, str]) -> tuple[float, float]:
    """Clips a second between the smaller and the larger job, and the seconds that do not grow with them."""
    first, last = run(manifests[FEW]), run(manifests[MANY])
    rate = (MANY - FEW) / (last - first)
    return rate, first - FEW / rate


def test_job_against_a_bare_loop(two_cpus, encoder, manifests, tmp_path):
    model = load_encoder(encoder)
    ways: dict[str, Callable[[str], float]] = {
        "one worker": lambda m: run_job(encoder, m, tmp_path, 1),
        "two workers": lambda m: run_job(encoder, m, tmp_path, 2),
        "loop": lambda m: seconds(lambda: bare_loop(model, m)),
    }
    for run in ways.values():
        run(manifests[FEW])  # to warm up
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            results[name].append(marginal(ways[name], manifests))
    notes = {
        name: f"{statistics.median(rate for rate, _ in found):.1f} clips/s and "
        f"{statistics.median(fixed for _, fixed in found):.1f} s once"
        for name, found in results.items()
    }
    for name in ("one worker", "two workers"):
        ratios = [a / b for (a, _), (b, _) in zip(results[name], results["loop"], strict=True)]
        say(f"embed with {name}, marginal clips/s over a bare loop of one thread", ratios,
            f"job {notes[name]}, loop {notes['loop']}")  # fmt: skip
        assert min(ratios) > 0
