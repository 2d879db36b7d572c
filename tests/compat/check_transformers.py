"""Exported folders in the newest transformers 4 and 5, in environments of their own that hold no ajepa.

`make compat` runs it. It prints a Markdown table, and exits with 1 where a check failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.hub import expected_values, make_classifier, make_encoder, write_classifier  # noqa: E402

from ajepa.config import PRESETS  # noqa: E402
from ajepa.inference.transformers_folder import write_transformers  # noqa: E402

ENVIRONMENTS = ROOT / ".venv-compat"
REQUIREMENTS = ("transformers<5", "transformers<6")


def make_environment(requirement: str) -> Path:
    """The interpreter of a fresh environment with a transformers, torch and safetensors."""
    folder = ENVIRONMENTS / f"transformers-{REQUIREMENTS.index(requirement)}"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", folder], check=True)
    python = folder / "bin/python"
    # torchaudio loads with the torch of its own version alone, but does not depend on one.
    version = torch.__version__.partition("+")[0]
    packages = [requirement, f"torch=={version}", f"torchaudio=={version}", "numpy", "safetensors"]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="*", help="interpreters of environments that are there, instead of new ones")
    pythons = parser.parse_args().python or [make_environment(requirement) for requirement in REQUIREMENTS]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        audio = make_encoder(PRESETS["nano"].model)
        write_transformers(str(folder / "encoder"), audio, {})
        classifier = make_classifier(folder / "finetuned")
        write_classifier(folder / "finetuned", folder / "classifier")
        values = expected_values(audio, classifier)
        np.savez(folder / "expected.npz", **values)
        began = time.perf_counter()
        for _ in range(10):
            audio(values["ten"], 16_000)
        print(f"ajepa: 10 s of sound in {(time.perf_counter() - began) / 10:.4f} s")
        rows, failed = [], False
        for python in pythons:
            script = Path(__file__).with_name("use_transformers.py")
            paths = [folder / name for name in ("encoder", "classifier", "expected.npz")]
            command = [python, script, *paths, "--hour"]
            done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
            if done.returncode:
                failed = True
                print(done.stderr, file=sys.stderr)
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    if rows:
        for line in [rows[0], ["---"] * len(rows[0]), *[row.values() for row in rows]]:
            print("| " + " | ".join(f"{cell:.2g}" if isinstance(cell, float) else cell for cell in line) + " |")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
