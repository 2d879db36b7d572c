"""The demo's sounds: classes that differ in structure over time and harmony, not in level or spectrum.

Most classes come with a time-reversed twin, so no statistic that ignores order can tell the two apart, and
every clip is equalised to a random smooth spectrum that says nothing about its class.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000  # Hz
SECONDS = 2.56

Generator = np.random.Generator


def _time() -> np.ndarray:
    return np.arange(round(RATE * SECONDS)) / RATE


def _harmonics(phase: np.ndarray, rng: Generator, ratios: np.ndarray | None = None) -> np.ndarray:
    """Partials over a phase in radians, random amplitudes; `ratios` default to 1, 2, 3, ..."""
    ratios = np.arange(1, 9) if ratios is None else ratios
    amplitudes = rng.uniform(0.5, 1.0, len(ratios)) / np.sqrt(np.arange(1, len(ratios) + 1))
    return sum(a * np.sin(r * phase + rng.uniform(0, 2 * np.pi)) for a, r in zip(amplitudes, ratios, strict=True))


def _onsets(gaps: np.ndarray, rng: Generator) -> np.ndarray:
    """Onset times in seconds that run through the clip: the gaps repeated, from a random place in the cycle."""
    repeats = int(np.ceil(2 * SECONDS / gaps.sum())) + 1
    times = np.cumsum(np.tile(gaps, repeats)) - rng.uniform(0, gaps.sum()) - gaps.sum()
    return times[(times > -0.5) & (times < SECONDS)]


def _pulses(onsets: np.ndarray, rng: Generator, decay: float) -> np.ndarray:
    """Percussive envelope: a sudden onset and an exponential decay at each onset."""
    t = _time()
    envelope = np.zeros_like(t)
    for onset in onsets:
        after = t - onset
        envelope += np.where(after >= 0, np.exp(-np.maximum(after, 0) / decay), 0.0) * rng.uniform(0.7, 1.0)
    return envelope


def _carrier(rng: Generator) -> np.ndarray:
    """Noise or a harmonic tone: what a rhythm is played on says nothing about the rhythm."""
    if rng.random() < 0.5:
        return rng.standard_normal(len(_time()))
    return _harmonics(2 * np.pi * rng.uniform(120, 500) * _time(), rng)


def _rising(rng: Generator) -> np.ndarray:
    period, low, octaves = rng.uniform(0.3, 0.6), rng.uniform(150, 500), rng.uniform(1.0, 2.0)
    place = (_time() / period + rng.random()) % 1.0
    frequency = low * 2 ** (octaves * place)
    return _harmonics(2 * np.pi * np.cumsum(frequency) / RATE, rng) * np.sin(np.pi * place) ** 0.3


def _decaying(rng: Generator) -> np.ndarray:
    period = rng.uniform(0.25, 0.5)
    return _carrier(rng) * _pulses(_onsets(np.array([period]), rng), rng, rng.uniform(0.05, 0.12))


def _symmetric_pulse_train(gaps: np.ndarray, rng: Generator) -> np.ndarray:
    """Short bursts that sound the same in both directions: only their spacing carries the class."""
    t, width = _time(), rng.uniform(0.015, 0.03)
    onsets = _onsets(gaps, rng)
    return _carrier(rng) * np.exp(-0.5 * ((t[:, None] - onsets) / width) ** 2).sum(axis=1)


def _accelerating(rng: Generator) -> np.ndarray:
    gaps = np.geomspace(0.30, 0.07, 6) * rng.uniform(0.8, 1.2)
    return _symmetric_pulse_train(gaps, rng)


def _tone_then_noise(rng: Generator) -> np.ndarray:
    period = rng.uniform(0.5, 0.8)
    place = (_time() / period + rng.random()) % 1.0
    tone = _harmonics(2 * np.pi * rng.uniform(150, 600) * _time(), rng)
    noise = rng.standard_normal(len(place))
    window = np.sin(np.pi * np.clip((place % 0.4) / 0.4, 0, 1)) ** 0.5
    first, second = place < 0.4, (place >= 0.4) & (place < 0.8)
    return window * (tone / tone.std() * first + noise * second)


def _amplitude_modulated(rng: Generator) -> np.ndarray:
    modulation = np.sin(2 * np.pi * rng.uniform(3, 8) * _time() + rng.uniform(0, 2 * np.pi))
    return _harmonics(2 * np.pi * rng.uniform(150, 600) * _time(), rng) * (1 + rng.uniform(0.7, 1.0) * modulation)


def _frequency_modulated(rng: Generator) -> np.ndarray:
    modulation = np.sin(2 * np.pi * rng.uniform(3, 8) * _time() + rng.uniform(0, 2 * np.pi))
    frequency = rng.uniform(150, 600) * 2 ** (rng.uniform(0.15, 0.4) * modulation)
    return _harmonics(2 * np.pi * np.cumsum(frequency) / RATE, rng)


def _chord(rng: Generator, ratios: np.ndarray) -> np.ndarray:
    """Notes of 0.2-0.4 s, each at another pitch."""
    period = rng.uniform(0.2, 0.4)
    place = _time() / period + rng.random()
    pitches = rng.uniform(120, 400, int(place[-1]) + 1)
    phase = 2 * np.pi * np.cumsum(pitches[place.astype(int)]) / RATE
    return _harmonics(phase, rng, ratios) * np.sin(np.pi * (place % 1.0)) ** 0.5


def _harmonic(rng: Generator) -> np.ndarray:
    return _chord(rng, np.arange(1.0, 9.0))


def _inharmonic(rng: Generator) -> np.ndarray:
    return _chord(rng, np.arange(1.0, 9.0) * rng.uniform(0.82, 1.22, 8))


def _reversed(make: Callable[[Generator], np.ndarray]) -> Callable[[Generator], np.ndarray]:
    return lambda rng: make(rng)[::-1]


CLASSES: dict[str, Callable[[Generator], np.ndarray]] = {
    "rising": _rising,
    "falling": _reversed(_rising),
    "decaying": _decaying,
    "swelling": _reversed(_decaying),
    "accelerating": _accelerating,
    "decelerating": _reversed(_accelerating),
    "tone-then-noise": _tone_then_noise,
    "noise-then-tone": _reversed(_tone_then_noise),
    "amplitude-modulated": _amplitude_modulated,
    "frequency-modulated": _frequency_modulated,
    "harmonic": _harmonic,
    "inharmonic": _inharmonic,
}


def _equalise(sound: np.ndarray, rng: Generator) -> np.ndarray:
    """Give a clip a random smooth long-term spectrum, add noise of that spectrum, and set a random level."""
    spectrum = np.fft.rfft(sound / (np.sqrt(np.mean(sound**2)) + 1e-9))
    noise = np.fft.rfft(rng.standard_normal(len(sound))) * 10 ** (-rng.uniform(12, 24) / 20)
    frequency = np.fft.rfftfreq(len(sound), 1 / RATE)
    octave = np.log2(np.maximum(frequency, 40) / 40)  # 0 to 7.6
    centres = np.linspace(0, 7.7, 16)
    weight = np.maximum(0, 1 - np.abs(octave[:, None] - centres) / (centres[1] - centres[0]))
    power = np.abs(spectrum) ** 2 + np.abs(noise) ** 2
    band = (weight * power[:, None]).sum(axis=0) / weight.sum(axis=0)
    wanted = rng.normal(0, 3, len(centres)) - 3.0 * centres  # dB, 3 dB an octave down
    gain = weight @ (wanted / 20 * np.log(10) - 0.5 * np.log(band + 1e-6))
    shaped = np.fft.irfft((spectrum + noise) * np.exp(gain), len(sound))
    return 0.1 * 10 ** (rng.uniform(-6, 6) / 20) * shaped / np.sqrt(np.mean(shaped**2))


def make_clip(name: str, seed: int) -> np.ndarray:
    """One clip [samples] float32 at 16 kHz, within [-1, 1]; a pure function of class and seed."""
    rng = np.random.default_rng([list(CLASSES).index(name), seed])
    sound = _equalise(CLASSES[name](rng), rng)
    return (sound / max(1.0, np.abs(sound).max())).astype(np.float32)


def write_clips(folder: Path, clips_per_class: int) -> Path:
    """WAV files and a manifest.csv (uri, labels, fold: five folds) for the `manifest` source; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "uri", "labels", "fold"])
        for name in CLASSES:
            for seed in range(clips_per_class):
                path = f"{name}-{seed:03d}.wav"
                soundfile.write(folder / path, make_clip(name, seed), RATE, subtype="PCM_16")
                writer.writerow([path, path, name, seed % 5 + 1])
    return folder / "manifest.csv"
