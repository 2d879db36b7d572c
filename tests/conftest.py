"""Fixtures for every test: real clips where they are at hand, a finished small dataset, one torch thread."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from filelock import FileLock
from helpers.loopback_s3 import here, s3, s3_server, wire  # noqa: F401  (fixtures)
from helpers.properties import nightly
from hypothesis import HealthCheck, settings

from ajepa import storage
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.config import FrontEndConfig
from ajepa.retries import PATIENCE
from ajepa.shards.dataset import ShardDataset, finish_dataset
from ajepa.shards.schema import BAD, OK
from ajepa.shards.writer import write_shard

# Before Ray is imported: with the names of its processes, by which `of_one_ray` knows what a second Ray prints.
os.environ["RAY_DISABLE_WORKER_LOG_PREFIX"] = "0"
# What a store that goes away does to a job is seen at once; Ray's workers have the variable from here.
os.environ[PATIENCE] = "0"
torch.set_num_threads(1)
# The same examples in every run, and as much time for them as the machine takes.
settings.register_profile(
    "ajepa",
    derandomize=True,
    deadline=None,
    max_examples=nightly(100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ajepa")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job: commands would ignore it as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


RAY = "ray"  # the modules that use the session's Ray


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2 --dist loadgroup`, a process takes a module at a time, or several that name one group; those with Ray
    are one group and come first. Two Rays of two processes were mixed up: a job that was submitted to one had its
    tasks on the other. What needs the S3 server is marked as having a process of its own."""
    modules = {item: item.nodeid.partition("::")[0] for item in items}
    with_ray = {module for item, module in modules.items() if item.get_closest_marker("ray")}
    for item, module in modules.items():
        if "s3_server" in item.fixturenames:
            item.add_marker(pytest.mark.process)
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(RAY if module in with_ray else module))
    items.sort(key=lambda item: modules[item] not in with_ray)


DATA = Path(__file__).parents[1].parent / "shared/data"
LABELS = ["bird", "engine", "rain", "siren"]


def _data(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"the real clips of {DATA / name} are not here")
    return DATA / name


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draws without a generator of their own do not depend on the tests before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def esc10() -> Path:
    """ESC-10 in ESC-50's layout: 400 clips."""
    return _data("esc10")


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """Recordings of the Free Spoken Digit Dataset."""
    return _data("fsdd/recordings")


@pytest.fixture(scope="session")
def audioset_tables() -> Path:
    """AudioSet's label table and the head of a segment list, without audio."""
    return _data("audioset")


def _write_wav(path: Path, samples: np.ndarray, rate: int = 16_000, **options: Any) -> str:
    soundfile.write(path, samples, rate, **options)
    return str(path)


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., str]:
    """write_wav(path, samples, rate) writes an audio file and returns its path."""
    return _write_wav


def _build_dataset(
    root: Path, clips: list[dict[str, Any]], *, shard_size: int, front_end: FrontEndConfig, label_names: list[str]
) -> ShardDataset:
    output = str(root)
    for status in (OK, BAD):
        storage.make_folder(storage.join(output, status))
    defaults = {"start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}
    table = pa.Table.from_pylist([defaults | clip for clip in clips], MANIFEST_SCHEMA)
    for index, start in enumerate(range(0, len(clips), shard_size)):
        write_shard(table.slice(start, shard_size), index, output, front_end)
    return finish_dataset(output, front_end, label_names, len(clips), {})


@pytest.fixture(scope="session")
def build_dataset() -> Callable[..., ShardDataset]:
    """build_dataset(root, clips, shard_size=, front_end=, label_names=) writes and finishes a dataset without Ray."""
    return _build_dataset


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    """40 synthetic clips of 0.3 to 2.9 s in 2 shards: 4 labels by pitch, folds 1..5, 256 frames. Read only."""
    root = tmp_path_factory.mktemp("small_dataset")
    generator = np.random.default_rng(0)
    clips = []
    for i in range(40):
        label = i % 4
        samples = round(16_000 * (0.3 + 2.6 * (i * 7 % 40) / 39))
        tone = np.sin(2 * np.pi * 300 * 2**label * np.arange(samples) / 16_000)
        wave = 0.3 * tone + generator.normal(0, 0.05, samples)
        uri = _write_wav(root / f"clip{i:02d}.wav", wave)
        clips.append({"clip_id": f"clip{i:02d}", "uri": uri, "fold": 1 + i // 4 % 5, "labels": [label]})
    return _build_dataset(
        root / "shards", clips, shard_size=20, front_end=FrontEndConfig(clip_frames=256), label_names=LABELS
    )


@pytest.fixture(scope="session")
def migrated_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database with all its tables: making them takes MLflow longer than most tests. One for all
    processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    database = folder / "migrated-mlflow.db"
    with FileLock(f"{database}.lock"):
        if not database.exists():
            import mlflow

            unfinished = folder / "unfinished-mlflow.db"
            mlflow.MlflowClient(f"sqlite:///{unfinished}").search_experiments()
            unfinished.replace(database)
    return database


@pytest.fixture(scope="session")
def new_mlflow(migrated_mlflow: Path) -> Callable[[Path], str]:
    """new_mlflow(folder) makes an MLflow database in a folder and returns its tracking URI."""

    def make(folder: Path) -> str:
        return f"sqlite:///{shutil.copy(migrated_mlflow, folder / 'mlflow.db')}"

    return make


@pytest.fixture
def mlflow_uri(tmp_path: Path, new_mlflow: Callable[[Path], str]) -> str:
    """An MLflow database for one test, in its folder."""
    return new_mlflow(tmp_path)
