"""The dry run: counts what is there, scales a sample, writes nothing."""

import numpy as np
import soundfile

from ajepa.audio.sources import load_manifest
from ajepa.config import FrontEndConfig
from ajepa.shards.estimate import estimate
from pipelines import preprocess


def test_a_dry_run_counts_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(16_000), 16_000)
    (folder / "bad.wav").write_text("text")
    argv = ["--source", "folder", "--input", str(folder), "--output", str(tmp_path / "out"), "--dry-run"]
    preprocess.main(preprocess.parse_args(argv))
    out = capsys.readouterr().out
    assert "10 clips; of 10 sampled, 1 would fail (10.0%): 1 decode" in out and "core-hours" in out
    assert not (tmp_path / "out").exists()


def test_a_sample_is_scaled_to_the_whole(tmp_path, monkeypatch):
    for i in range(40):
        soundfile.write(tmp_path / f"{i:02d}.wav", np.full(16_000, 0.1), 16_000)
    monkeypatch.setattr("ajepa.shards.estimate.SAMPLE", 10)
    result = estimate(load_manifest("folder", str(tmp_path)), FrontEndConfig())
    assert (result.clips, result.sampled, result.errors.total()) == (40, 10, 0)
    assert abs(result.hours - 40 * 1.01 / 3600) < 1e-6
    assert abs(result.gigabytes - 40 * 2 * 128 * 1024 / 1e9) < 1e-9
    assert result.core_hours > 0
