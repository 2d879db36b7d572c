"""What goes wrong on the disk under a training run: torn checkpoints, a full disk, other settings, damaged shards."""

import contextlib
from pathlib import Path

import pytest
from helpers.faults import assert_one_mlflow_run, assert_same_end, checkpoints, of_one_ray, options

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.training import checkpoint_writer
from ajepa.training.run_folder import read_history
from pipelines.cli.command import run_command
from pipelines.jobs.pretrain import main
from pipelines.pretrain import parse_args
from pipelines.rayjobs import stop_requests


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory, new_mlflow):
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


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
    write = checkpoint_writer.write_checkpoint

    def write_then_stop(folder, shot):
        write(folder, shot)
        if shot.step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write_then_stop)
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
    write = checkpoint_writer.write_checkpoint

    def write_half(folder, shot):
        if shot.step == 5:
            Path(folder).mkdir(parents=True)
            Path(folder, "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        write(folder, shot)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write_half)
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


def test_a_stop_file_stops_the_run_and_the_same_command_goes_on(
    arguments, tmp_path, reference, monkeypatch, mlflow_uri
):
    write, stop = checkpoint_writer.write_checkpoint, tmp_path / "run" / "STOP"

    def write_and_ask(folder, shot):
        write(folder, shot)
        if shot.step == 5:
            stop.touch()

    monkeypatch.setattr(stop_requests, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write_and_ask)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(arguments))
    monkeypatch.undo()
    assert 5 < checkpoints(tmp_path / "run")[-1] < 12 and not stop.exists()
    stop.touch()  # as a command leaves it that was killed while it stopped
    main(parse_args(arguments))
    assert_same_end(tmp_path / "run", reference)
    assert_one_mlflow_run(mlflow_uri, tmp_path / "run")


def test_other_settings_are_refused_and_named_and_gone_on_with_when_told_to(interrupted, arguments, mlflow_uri, capfd):
    other = [*arguments, "--lr", "0.01"]
    with pytest.raises(UserError, match=r"train\.lr: .* -> 0\.01.*--resume-anyway"):
        main(parse_args(other))
    assert checkpoints(interrupted) == [5, 10]
    info = main(parse_args([*other, "--resume-anyway"]))
    printed = capfd.readouterr()
    assert "resuming although these differ: train.lr" in printed.err and "resuming at step 10" in printed.out
    assert info.step == 12 and info.config.train.lr == 0.01
    assert_one_mlflow_run(mlflow_uri, interrupted)


def test_other_data_is_refused_and_named_and_gone_on_with_when_told_to(
    interrupted, arguments, small_dataset, build_dataset, tmp_path, capfd
):
    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))[:20]
    clips = [{"clip_id": sound.stem, "uri": str(sound)} for sound in sounds]
    half = build_dataset(
        tmp_path / "half", clips, shard_size=20, front_end=FrontEndConfig(clip_frames=256), label_names=[]
    )
    other = ["--data", half.path, *arguments[2:]]
    named = f"dataset: {small_dataset.content_hash} -> {half.content_hash}"
    with pytest.raises(UserError, match=named):
        main(parse_args(other))
    info = main(parse_args([*other, "--resume-anyway"]))
    assert f"resuming although these differ: {named}" in capfd.readouterr().err
    assert info.step == 12 and info.dataset_hash == half.content_hash


@pytest.mark.disk("1800k", "100m")  # a checkpoint takes 1.1 MB
@pytest.mark.parametrize("num_workers", ["0", pytest.param("1", marks=[pytest.mark.ray, pytest.mark.cluster])])
def test_a_full_disk_stops_the_run_with_one_line_and_the_same_command_goes_on(
    num_workers, small_disk, small_dataset, mlflow_uri, reference, capfd, request
):
    """A run that a worker of Ray began is ended here by this process: the command is the same otherwise."""
    if num_workers != "0":
        request.getfixturevalue("ray_session")
    folder, enlarge = small_disk
    arguments = options(small_dataset.path, folder / "run", mlflow_uri)
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(parse_args([*arguments, "--num-workers", num_workers])))
    printed = capfd.readouterr()
    assert exit_.value.code == 2, printed
    lines = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "the disk is full" in lines[0] and "same command again" in lines[0]
    assert "Traceback" not in of_one_ray(printed.err), printed.err
    assert checkpoints(folder / "run") == [5] and not list(folder.rglob("*.tmp"))
    enlarge()
    main(parse_args([*arguments, "--num-workers", "0"]))
    assert "resuming at step 5" in capfd.readouterr().out
    assert_same_end(folder / "run", reference)
    assert_one_mlflow_run(mlflow_uri, folder / "run")


@pytest.mark.disk("1800k", "100m")
def test_a_disk_without_room_for_a_report_is_said_in_one_line(small_disk, small_dataset, mlflow_uri, reference, capfd):
    folder, enlarge = small_disk
    arguments = options(small_dataset.path, folder / "run", mlflow_uri, "--num-workers", "0")
    write = checkpoint_writer.write_checkpoint

    def write_then_fill(target, shot):
        write(target, shot)
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1000))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "write_checkpoint", write_then_fill)
        with pytest.raises(SystemExit) as exit_:
            run_command(lambda: main(parse_args(arguments)))
    printed = capfd.readouterr().err
    assert exit_.value.code == 2 and "Traceback" not in printed, printed
    assert printed.count("error: cannot write") == 1 and "the disk is full" in printed
    assert checkpoints(folder / "run") == [5]
    enlarge()
    main(parse_args(arguments))
    assert_same_end(folder / "run", reference)
    steps = [[r["step"] for r in read_history(str(run))] for run in (folder / "run", reference)]
    assert steps[0] == steps[1]
