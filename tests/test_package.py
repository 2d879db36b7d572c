"""What `pip install .` gives: the wheel holds the encoders, and they load from it offline, without the jobs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.faults import PATIENCE

from ajepa.inference.shipped import DIGESTS, FOLDER

ROOT = Path(__file__).parents[1]
THREE_LINES = """
import socket, sys
def refuse(*args): raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
import ajepa, numpy
encoder = ajepa.load_encoder("nano")
vector = encoder(numpy.sin(numpy.arange(16_000) / 20).astype("float32"), 16_000)
print(ajepa.__file__, tuple(vector.shape), sorted({"ray", "mlflow", "pipelines"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    wheels = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed: make dev")
    (built,) = wheels.WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"]
    )
    return Path(built)


def test_the_wheel_holds_every_file_of_the_encoders(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in DIGESTS:
        files = {f"ajepa/weights/{name}/{path.name}" for path in (FOLDER / name).iterdir()}
        assert files <= names and len(files) == 4
    assert not {name for name in names if name.startswith(("pipelines/", "tests/"))}


@pytest.mark.process
def test_an_encoder_loads_from_the_wheel_without_network(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-P", "-c", THREE_LINES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path / 'site/ajepa/__init__.py'} (1, 192) []"
