"""One real Ray for all job tests, finished runs that they share, and a folder of labelled sounds."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import growing
from helpers.faults import WIDE, options
from helpers.growing import save_line
from helpers.imported import listing
from helpers.runs import tiny_config
from helpers.training_state import save_run


@pytest.fixture(scope="session")
def ray_session(s3_server):
    """One Ray on two CPUs for all tests of this process; its workers reach the S3 server."""
    import ray

    from pipelines.rayjobs.cluster import start_ray

    # As in an activated environment: a submitted job's `python` is this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start_ray(num_cpus=2)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def encoder(small_dataset, tmp_path_factory) -> str:
    """A run folder with the checkpoint of step 1, for commands that take an encoder. Read only."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    save_run(folder, small_dataset, 1)
    return str(folder)


@pytest.fixture(scope="session")
def finished_run(small_dataset, tmp_path_factory, new_mlflow):
    """The arguments of a finished run of 6 steps, in an MLflow database that others may record to. Read only."""
    from pipelines.jobs import pretrain
    from pipelines.pretrain import PretrainArgs

    folder = tmp_path_factory.mktemp("finished")
    args = PretrainArgs(
        data=small_dataset.path, output=str(folder / "run"), num_workers=0, threads=1, mlflow_uri=new_mlflow(folder),
        config=tiny_config(), figures=False,
    )  # fmt: skip
    pretrain.main(args)
    return args


@pytest.fixture(scope="session")
def by_two(small_dataset, tmp_path_factory, new_mlflow, ray_session):
    """The folder of a finished run of 12 steps by two workers, with checkpoints every 5 steps; beside it, what its
    processes had imported. Read only."""
    from pipelines.jobs import pretrain
    from pipelines.pretrain import parse_args

    folder = tmp_path_factory.mktemp("by-two")
    more = ("--num-workers", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "fit", listing(pretrain.fit, folder))
        pretrain.main(parse_args(options(small_dataset.path, folder / "run", new_mlflow(folder), *more, width=WIDE)))
    return folder / "run"


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """20 clips of two kinds in subfolders, 1 to 2 s at 8 and 16 kHz."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for kind in ("noise", "tone"):
        (folder / kind).mkdir()
        for i in range(10):
            rate = (8_000, 16_000)[i % 2]
            t = np.arange(round(rate * (1 + i / 10))) / rate
            wave = rng.standard_normal(len(t)) if kind == "noise" else np.sin(2 * np.pi * (300 + 40 * i) * t)
            soundfile.write(folder / kind / f"{kind} {i}.wav", 0.1 * wave, rate)
    return folder


@pytest.fixture
def small_disk(tmp_path, request):
    """A file system of a size like "700k", the marker's first argument, and how to make it as large as the second."""
    size, larger = request.node.get_closest_marker("disk").args
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield folder, lambda: subprocess.run(["mount", "-o", f"remount,size={larger}", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders "old" and "all": 6 clips and a bad one; 5 more, a third label, two copies and a silent one."""
    root = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for folder in ("old/k", "new/k", "new/m"):
        (root / folder).mkdir(parents=True)
    for i in range(11):
        folder = "old/k" if i < 6 else ("new/k", "new/m")[i % 2]
        soundfile.write(root / folder / f"{i:02d}.wav", 0.1 * rng.standard_normal(8_000), 16_000)
    (root / "old/k/bad.wav").touch()
    shutil.copy(root / "old/k/03.wav", root / "new/k/copy of 03.wav")  # after it by name
    shutil.copy(root / "old/k/04.wav", root / "new/k/00 copy.wav")  # before it by name
    soundfile.write(root / "new/m/silent.wav", np.zeros(20_000), 44_100)
    shutil.copytree(root / "old", root / "all")
    shutil.copytree(root / "new", root / "all", dirs_exist_ok=True)
    return root


@pytest.fixture
def no_reports(monkeypatch):
    """A line in place of the end report of preprocess.py."""
    from pipelines.jobs import append, preprocess

    for module in (append, preprocess):
        monkeypatch.setattr(module, "save_report", save_line)


@pytest.fixture(scope="session")
def old_job(ray_session, parts, tmp_path_factory, new_mlflow):
    """The options of a finished preprocess job on the old clips of `parts`. Its dataset is for reading only."""
    from pipelines.jobs import preprocess

    folder = tmp_path_factory.mktemp("old")
    args = growing.options(parts, folder, new_mlflow(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "save_report", save_line)
        preprocess.main(args)
    return args


@pytest.fixture
def appending(old_job, parts, tmp_path):
    """Options that add all clips of `parts` to a copy of that dataset."""
    copy = shutil.copytree(old_job.output, tmp_path / "shards")
    return dataclasses.replace(old_job, input=str(parts / "all"), output=str(copy), append=True)
