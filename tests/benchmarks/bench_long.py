"""Peak memory of hours of sound through the encoder that ships, each in a process of its own.

Run with `make bench`. AJEPA_BENCH_HOURS sets the length.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.common import say, write_long

from ajepa.inference.pretrained import load_encoder
from ajepa.inference.transformers_folder import write_transformers

pytestmark = pytest.mark.timeout(3_600)
HOURS = float(os.environ.get("AJEPA_BENCH_HOURS", "3"))

START = """
import os, resource, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
hours, path = float(sys.argv[1]), sys.argv[2]

def waveform():
    made, generator = np.empty(int(hours * 3600 * 16_000), np.float32), np.random.default_rng(0)
    for part in np.array_split(made, 100):
        part[:] = 0.1 * generator.standard_normal(len(part), np.float32)
    return made

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
"""
NATIVE = """
import ajepa
encoder, sound = ajepa.load_encoder("nano"), waveform()
before = peak()
"""
END = "\nprint(before, peak())"
WAYS = {
    "clip_embeddings": NATIVE + "encoder.clip_embeddings(sound, 16_000, pooling='bands mean+std')",
    "frame_embeddings": NATIVE + "encoder.frame_embeddings(sound, 16_000)",
    "a file, as embed.py reads it": """
import ajepa
from ajepa.audio.manifest import make_table
from ajepa.inference.embedder import Embedder, EmbedSettings
embedder = Embedder(ajepa.load_encoder("nano"), EmbedSettings(level="frame", max_seconds=hours * 3600))
for status in ("status=ok", "status=bad"):
    Path("out", status).mkdir(parents=True)
before = peak()
assert embedder.write_files(make_table(["a"], [path], [[]], []), 0, "out").ok == 1
""",
    "transformers": """
from transformers import AutoFeatureExtractor, AutoModel
model = AutoModel.from_pretrained("hub", trust_remote_code=True).eval()
extractor, sound = AutoFeatureExtractor.from_pretrained("hub", trust_remote_code=True), waveform()
before = peak()
with torch.inference_mode():
    model(**extractor(sound, sampling_rate=16_000, return_tensors="pt"))
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_of_hours_of_sound(way, tmp_path):
    path = tmp_path / "long.flac"
    if "file" in way:
        write_long(path, round(HOURS * 3600), 44_100)
    if way == "transformers":
        write_transformers(str(tmp_path / "hub"), load_encoder("nano"), {})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", START + WAYS[way] + END, str(HOURS), str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    before, peak = (float(value) for value in done.stdout.split()[-2:])
    say(f"{way}, {HOURS:g} hours: peak memory", [peak], f"GB; {before:.2f} GB with the sound that was handed over")
    assert peak >= before
