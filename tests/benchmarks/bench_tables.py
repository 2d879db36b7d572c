"""What a table costs beside its trials' own training and probing: by `ablate.py` with Ray Tune, and by
`python -m ajepa.experiments`. Run with `make bench`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.common import say
from helpers.faults import PATH, ROOT

from pipelines.cli.arguments import usable_cpus

pytestmark = pytest.mark.timeout(7_200)
STEPS, SEEDS = 100, 2
VALUES = ("0.6", "0.7")  # of the masking ratio: trials that cost nearly the same


@pytest.fixture(scope="module")
def shards(esc10, tmp_path_factory):
    """ESC-10."""
    folder = tmp_path_factory.mktemp("tables")
    where = ["--source", "esc50", "--input", str(esc10), "--output", str(folder / "shards")]
    run(["pipelines/preprocess.py", *where, "--mlflow-uri", f"sqlite:///{folder / 'mlflow.db'}"])
    return folder / "shards"


def run(arguments: Sequence[str]) -> float:
    """Seconds of a command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | PATH, check=True, capture_output=True)
    return time.perf_counter() - began


def own_seconds(output: Path) -> tuple[int, float]:
    """Number of trials, and seconds of their training and probing alone."""
    results: list[dict[str, Any]] = [json.loads(path.read_text()) for path in output.glob("trials/*/result.json")]
    training = [64 * result["steps"] / result["clips_per_second"] for result in results if "steps" in result]
    assert len(training) == len(VALUES) * SEEDS
    return len(results), sum(training) + sum(result["probe_seconds"] for result in results)


@pytest.mark.parametrize(("command", "at_once"), [("pipelines/ablate.py", usable_cpus()), ("-m ajepa.experiments", 1)])
def test_cost_of_a_table(shards, tmp_path, command, at_once):
    """Of short trials: what a trial costs beside is nearly the same for one of 1,500 steps."""
    output = tmp_path / "table"
    shape = ["--values", *VALUES, "--seeds", str(SEEDS), "--max-steps", str(STEPS), "--threads", "1"]
    tracking = ["--mlflow-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"] if command.endswith(".py") else []
    took = run([*command.split(), "masking_ratio", "--data", str(shards), "--output", str(output), *shape, *tracking])
    trials, own = own_seconds(output)
    beside = (took * at_once - own) / trials
    say(f"CPU seconds of a table by {command} over its {trials} trials' own", [took * at_once / own],
        f"{took:.0f} s, {at_once} at once: {beside:.1f} s a trial beside")  # fmt: skip
    assert own < took * at_once
