"""What goes wrong on the disk under a training run: torn checkpoints, a full disk, other settings, damaged shards."""

import os
import subprocess
from pathlib import Path

import pytest
from faults import assert_one_mlflow_run, assert_same_end, checkpoints, options

from ajepa.errors import UserError
from ajepa.training import writer
from pipelines.common import run_command
from pipelines.pretrain import main, parse_args


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def reference(small_dataset, tmp_path_factory, mlflow_uri):
    """The undisturbed run's folder."""
    output = tmp_path_factory.mktemp("reference") / "run"
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "0")))
    return output


@pytest.fixture
def arguments(small_dataset, tmp_path, mlflow_uri):
    return options(small_dataset.path, tmp_path / "run", mlflow_uri, "--num-workers", "0")


@pytest.fixture
def interrupted(arguments, tmp_path, monkeypatch):
    """A run that ended by itself after its checkpoint of step 10."""
    write = writer.write_checkpoint

    def write_then_stop(folder, shot):
        write(folder, shot)
        if shot.step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "write_checkpoint", write_then_stop)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(arguments))
    monkeypatch.undo()
    assert checkpoints(tmp_path / "run") == [5, 10]
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(
    name, interrupted, arguments, reference, mlflow_uri, caplog, capfd
):
    torn = interrupted / "checkpoints/step-00000010" / name
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    main(parse_args(arguments))
    assert "resuming at step 5" in capfd.readouterr().out
    warnings = [record.getMessage() for record in caplog.records if "step-00000010" in record.getMessage()]
    assert len(warnings) == 1 and name in warnings[0]
    assert_same_end(interrupted, reference)
    assert_one_mlflow_run(mlflow_uri, interrupted)


def test_a_run_killed_in_its_first_checkpoint_starts_again(arguments, tmp_path, reference, monkeypatch, mlflow_uri):
    write = writer.write_checkpoint

    def write_half(folder, shot):
        if shot.step == 5:
            Path(folder).mkdir(parents=True)
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        write(folder, shot)

    monkeypatch.setattr(writer, "write_checkpoint", write_half)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(arguments))
    monkeypatch.undo()
    main(parse_args(arguments))
    assert_same_end(tmp_path / "run", reference)
    assert_one_mlflow_run(mlflow_uri, tmp_path / "run")


def test_no_intact_checkpoint_is_refused(interrupted, arguments):
    for path in interrupted.rglob("model.safetensors"):
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match="none of its 2 checkpoints is intact"):
        main(parse_args(arguments))


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a checkpoint and a half, and how to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=35m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=500m", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_full_disk_stops_the_run_with_one_line_and_the_same_command_goes_on(
    num_workers, small_disk, small_dataset, mlflow_uri, reference, capfd, request
):
    if num_workers:
        request.getfixturevalue("ray_session")
    folder, enlarge = small_disk
    arguments = options(small_dataset.path, folder / "run", mlflow_uri, "--num-workers", str(num_workers))
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(parse_args(arguments)))
    printed = capfd.readouterr()
    assert exit_.value.code == 2, printed
    lines = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "the disk is full" in lines[0] and "same command again" in lines[0]
    assert "Traceback" not in printed.err, printed.err
    assert checkpoints(folder / "run") == [5] and not list(folder.rglob("*.tmp"))
    enlarge()
    main(parse_args(arguments))
    assert "resuming at step 5" in capfd.readouterr().out
    assert_same_end(folder / "run", reference)
    assert_one_mlflow_run(mlflow_uri, folder / "run")
