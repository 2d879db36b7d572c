"""The wheel in fresh environments with the oldest and the newest torch: loading, embedding, ONNX, resuming.

`make compat` runs it. It prints a Markdown table, and exits with 1 where a test failed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-compat"
OLDEST = "torch==2.6.0"
NEWEST = "torch<3"
TESTS = {
    "load": ["tests/inference/test_pretrained.py", "tests/inference/test_shipped.py"],
    "embed": ["tests/inference/test_encoder.py", "tests/inference/test_embedder.py"],
    "ONNX, torch.export": ["tests/inference/test_graph.py"],
    "train, resume": [f"tests/training/test_{name}.py" for name in ("step", "resume", "checkpoint")],
}
VERSIONS = "import torch, numpy, platform; print(platform.python_version(), torch.__version__, numpy.__version__)"


def run(*command: str | Path) -> str:
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def build_wheel() -> Path:
    """The wheel of this checkout."""
    folder = ENVIRONMENTS / "dist"
    run(sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    return max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)


def make_environment(name: str, wheel: Path, requirement: str) -> Path:
    """A fresh environment with the wheel, its test and ONNX extras, and a torch; returns its folder."""
    folder = ENVIRONMENTS / name
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--clear", folder)
    python = folder / "bin/python"
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, f"{wheel}[test,onnx]", requirement)
    return folder


def check(folder: Path, files: list[str]) -> str:
    """The outcome of some test files: the last line of pytest."""
    # pytest's own script: `python -m pytest` would put this checkout before the wheel.
    command = [
        str(folder / "bin/pytest"),
        "--quiet",
        "--override-ini",
        "addopts=--import-mode=importlib",
        "-m",
        "not process",
        *files,
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.stdout.strip().splitlines()[-1].strip("= ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("requirements", nargs="*", default=[OLDEST, NEWEST], help="of torch; one environment each")
    wheel = build_wheel()
    rows, failed = [], False
    for number, requirement in enumerate(parser.parse_args().requirements):
        folder = make_environment(f"torch-{number}", wheel, requirement)
        outcomes = [check(folder, files) for files in TESTS.values()]
        failed |= any("failed" in outcome or "error" in outcome for outcome in outcomes)
        rows.append([*run(folder / "bin/python", "-c", VERSIONS).split(), *outcomes])
    heading = ["Python", "torch", "numpy", *TESTS]
    for line in [heading, ["---"] * len(heading), *rows]:
        print(f"| {' | '.join(line)} |")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
