"""The GPU benchmark runs where there is nothing but torch, numpy and pyarrow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faults import PATIENCE

ROOT = Path(__file__).parents[1]
MISSING = {
    "soundfile", "soxr", "scipy", "torchaudio", "safetensors", "sklearn", "ray", "mlflow", "tyro", "pandas",
    "matplotlib",
}  # fmt: skip
RUN = f"""
import runpy, sys
runpy.run_path("tests/benchmarks/bench_gpu.py", run_name="__main__")
print("more than a bare box has:", sorted({MISSING} & set(sys.modules)))
"""


@pytest.mark.process
def test_the_gpu_benchmark_needs_no_more_than_a_bare_box_has():
    options = ["--device", "cpu", "--preset", "nano", "--batches", "2", "--steps", "1"]
    command = [sys.executable, "-c", RUN, *options, "--variants", "no compile", "4 masks", "naive"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 2 | ")]
    assert len(rows) == 6 and "`nano` on CPU" in done.stdout and "| target forward |" in done.stdout
    assert "more than a bare box has: []" in done.stdout
