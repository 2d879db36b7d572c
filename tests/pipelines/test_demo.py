"""The demo's sounds are fair, and the whole chain runs on a handful of them."""

import functools

import numpy as np
import pytest
from helpers.runs import tiny_config

from ajepa.audio.synthetic import CLASSES, make_clip, write_clips
from ajepa.config import PRESETS
from pipelines.demo import DemoArgs
from pipelines.jobs import demo


@pytest.fixture(scope="module")
def clip():
    """make_clip, once for each class and seed."""
    return functools.cache(make_clip)


def test_clips_are_pure_functions_of_class_and_seed():
    assert (make_clip("rising", 3) == make_clip("rising", 3)).all()
    assert not np.allclose(make_clip("rising", 3), make_clip("rising", 4))


@pytest.mark.parametrize("name", CLASSES)
def test_clips_are_finite_and_within_range(name):
    clip = make_clip(name, 0)
    assert clip.dtype == np.float32 and np.isfinite(clip).all() and 0.01 < np.abs(clip).max() <= 1.0


def test_level_says_nothing_about_the_class(clip):
    levels = {n: [20 * np.log10(np.std(clip(n, s))) for s in range(20)] for n in CLASSES}
    means = [np.mean(v) for v in levels.values()]
    assert max(means) - min(means) < 6  # of a 12 dB range that every class shares
    assert all(np.ptp(v) > 6 for v in levels.values())


def test_time_reversed_twins_share_their_long_term_spectrum(clip):
    twins = [
        ("rising", "falling"), ("decaying", "swelling"), ("accelerating", "decelerating"),
        ("tone-then-noise", "noise-then-tone"),
    ]  # fmt: skip
    for forward, backward in twins:
        # The same long-term spectrum in distribution: means over clips agree, bin by bin, within their spread.
        spectra = [
            np.log(np.stack([np.abs(np.fft.rfft(clip(n, s)))[:8000:200] for s in range(30)]) + 1e-3)
            for n in (forward, backward)
        ]
        gap = np.abs(spectra[0].mean(axis=0) - spectra[1].mean(axis=0))
        assert (gap < 4 * (spectra[0].std(axis=0) + spectra[1].std(axis=0)) / 30**0.5).all()


def test_the_manifest_lists_every_clip_in_five_folds(tmp_path):
    manifest = write_clips(tmp_path, 5).read_text().splitlines()
    assert len(manifest) == 1 + 5 * len(CLASSES)
    assert {line.rpartition(",")[2] for line in manifest[1:]} == {"1", "2", "3", "4", "5"}


@pytest.mark.ray
def test_the_demo_runs_end_to_end(ray_session, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_session, "shutdown", lambda: None)  # other tests still need it
    monkeypatch.setitem(PRESETS, "nano", tiny_config())
    demo.main(DemoArgs(output=str(tmp_path / "demo"), clips_per_class=5, max_steps=4, num_workers=1))
    out = capsys.readouterr().out
    assert "60 clips ok, 0 bad" in out and "| pretrained |" in out and "ui --backend-store-uri" in out
    assert "step 4/4" in out and "\x1b" not in out
    for name in ("masks.png", "predictions.png", "training.png"):
        assert (tmp_path / "demo" / "run" / "figures" / name).stat().st_size > 10_000
