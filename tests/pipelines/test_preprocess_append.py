"""preprocess.py --append on a real Ray: a finished dataset takes the clips that are new and ends as one job would have.
Copies and silent clips, kept or dropped."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import soundfile
from helpers.faults import PATH, ROOT, Gate
from helpers.growing import FRONT_END, save_line

from ajepa import storage
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.shards.verify import verify_dataset
from pipelines import preprocess
from pipelines.cli.command import run_command
from pipelines.jobs import append
from pipelines.jobs import preprocess as job
from pipelines.preprocess import parse_args

pytestmark = pytest.mark.ray


@pytest.fixture
def args(appending):
    """Options that add clips to a dataset of this test."""
    return appending


@pytest.fixture(scope="module")
def whole(ray_session, old_job, parts, tmp_path_factory):
    """The dataset of all clips in one go."""
    output = tmp_path_factory.mktemp("whole") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "save_report", save_line)
        return job.main(dataclasses.replace(old_job, input=str(parts / "all"), output=str(output), clips_per_shard=20))


def same(dataset, whole) -> bool:
    assert dataset.info["counts"] == whole.info["counts"]
    assert (dataset.statistics.std == whole.statistics.std).all()
    return dataset.content_hash == whole.content_hash


def test_it_ends_as_one_job_with_report_and_mlflow_run(args, whole, parts, capsys):
    before = open_dataset(args.output)
    batch = ShardReader(before, crop_frames=64, batch_size=4, seed=0).batch(3).log_mel
    grown = append.main(args)
    out = capsys.readouterr().out
    assert "7 clips of the source are known (1 of them bad: not tried again), 8 new" in out
    assert "note: 1 known clips were bad and stay so" in out
    assert "note: 2 clips are copies of others (identical log-mel), listed in report/duplicates.csv" in out
    assert "note: 1 clip is silent, listed in report/silent.csv" in out
    assert same(grown, whole) and sum(verify_dataset(args.output)) == whole.num_clips == 14
    assert (ShardReader(before, crop_frames=64, batch_size=4, seed=0).batch(3).log_mel == batch).all()
    assert not Path(args.output, "_plan").exists()
    text = Path(args.output, "report/report.md").read_text()
    assert "## Copies and silence" in text and "7 clips of the source are known" in text
    assert Path(args.output, "report/duplicates.csv").read_text().splitlines()[1:] == [
        "k/04.wav,,-1,k/00 copy.wav,,-1,False,ok", "k/copy of 03.wav,,-1,k/03.wav,,-1,False,ok",
    ]  # fmt: skip
    (entry,) = grown.info["appended"]
    run = mlflow.MlflowClient(args.mlflow_uri).get_run(entry["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.params["known"] == "7"
    assert [run.data.metrics[f"data/{name}"] for name in ("clips_ok", "copies", "silent")] == [14, 2, 1]


def test_what_follows_on_a_grown_dataset(args, old_job, parts, whole, no_reports, capsys, tmp_path):
    append.main(args)
    before = {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}
    again = append.main(args)
    assert f"nothing to do: {args.output} has all 15 clips of the source, 1 of them bad" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")} and same(again, whole)
    job.main(dataclasses.replace(old_job, output=args.output))  # the first command, on what its input was
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="--append to add the clips that are new"):
        job.main(dataclasses.replace(args, append=False))
    soundfile.write(tmp_path / "more.wav", np.random.default_rng(9).standard_normal(4_000), 16_000)
    one = dataclasses.replace(args, input=str(tmp_path), labels_from_folders=False)
    job.main(dataclasses.replace(one, output=str(tmp_path / "one"), append=False))
    preprocess.main(parse_args(["--merge", args.output, str(tmp_path / "one"), "--output", str(tmp_path / "merged")]))
    assert append.main(one).content_hash == open_dataset(str(tmp_path / "merged")).content_hash
    assert [entry["plan"]["clips"] for entry in open_dataset(args.output).info["appended"]] == [8, 1]


def test_without_an_option_the_settings_are_those_of_the_dataset(args, no_reports, mlflow_uri):
    argv = ["--source", "folder", "--input", args.input, "--output", args.output, "--append", "--labels-from-folders"]
    assert parse_args(argv).front_end == FRONT_END
    append.main(parse_args([*argv, "--mlflow-uri", mlflow_uri, "--duplicates", "drop"]))
    parsed = parse_args(argv)
    assert (parsed.front_end, parsed.duplicates, parsed.silent) == (FRONT_END, "drop", "keep")


def refused(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: preprocess.main(parse_args(argv)))
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_what_is_refused(args, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}
    what = ("--source", "folder", "--input", args.input, "--labels-from-folders", "--append")
    to = ("--output", args.output)
    line = refused(capsys, *what, *to, "--clip-frames", "1024")  # the command's own default is another one as well
    assert "made with another front end (clip_frames: 128 -> 1024): leave these options out" in line
    assert "that --overwrite would delete" in refused(capsys, *what, *to, "--overwrite")
    nothing = refused(capsys, *what, "--output", str(tmp_path / "new"))
    assert "holds nothing: leave --append out" in nothing and not (tmp_path / "new").exists()
    unfinished = shutil.copytree(args.output, tmp_path / "unfinished")
    (unfinished / "_plan").mkdir()
    (unfinished / "dataset.json").rename(unfinished / "_plan/plan.json")
    assert "an unfinished job: finish it with its own command" in refused(capsys, *what, "--output", str(unfinished))
    assert before == {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}


def test_a_dry_run_is_of_the_new_clips(args, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}
    append.main(dataclasses.replace(args, dry_run=True))
    assert "8 new\n8 clips; of 8 sampled, 0 would fail" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}


class KilledError(BaseException):
    pass


@pytest.mark.slow
def test_killed_before_any_write_of_its_driver_it_goes_on(args, whole, parts, no_reports, monkeypatch, capsys):
    """Until dataset.json is replaced the old dataset is whole. With copies to be dropped, as one job would."""
    args = dataclasses.replace(args, duplicates="drop")
    old = open_dataset(args.output)
    atomic, delete, stop = storage.atomic_output, storage.delete, {"before": ""}

    def killed(path):
        if path.endswith(stop["before"]):
            raise KilledError
        return atomic(path)

    def killed_delete(path):
        if stop["before"] == "deletion" and path.endswith("_plan"):
            raise KilledError
        delete(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "atomic_output", killed)
        patch.setattr(storage, "delete", killed_delete)
        for name in ("_plan/manifest.parquet", "_plan/append.json", "_plan/copies.parquet", "dataset.json"):
            stop["before"] = name
            with pytest.raises(KilledError):
                append.main(args)
            assert open_dataset(args.output).info == old.info
            assert sum(verify_dataset(args.output)) == old.num_clips
        for name in ("report.md", "deletion"):
            stop["before"] = name
            with pytest.raises(KilledError):
                append.main(args)
            assert sum(verify_dataset(args.output)) == 12
    capsys.readouterr()
    grown = append.main(args)
    assert "nothing to do" in capsys.readouterr().out and not Path(args.output, "_plan").exists()
    assert grown.info["counts"]["bad_by_stage"] == {"decode": 1, "duplicate": 2}
    assert grown.num_clips + 2 == whole.num_clips


def test_another_addition_to_an_unfinished_one_is_refused(args, old_job, no_reports, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(append, "write_all", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            append.main(args)
    for other, what in [
        (dataclasses.replace(args, duplicates="drop"), "duplicates: keep -> drop"),
        (dataclasses.replace(args, clips_per_shard=4), "shard_size: 3 -> 4"),
        (dataclasses.replace(args, input=old_job.input), "clips: 8 -> 0"),
        (dataclasses.replace(args, labels_from_folders=False), "manifest_hash"),
    ]:
        with pytest.raises(UserError, match=rf"{what}.*finish that first with its own command, or give it up: delete"):
            append.main(other)
    job.main(dataclasses.replace(old_job, output=args.output))
    assert "clips that were being added to it are unfinished" in capsys.readouterr().out
    Path(args.output, "_plan/manifest.parquet").unlink()
    with pytest.raises(UserError, match=r"manifest.parquet: is missing: delete _plan/append.json and all shards that"):
        append.main(args)
    shutil.rmtree(Path(args.output, "_plan"))  # given up before it wrote shards
    assert append.main(args).num_clips == 14


def test_clips_that_come_while_it_is_interrupted_are_for_the_next_time(
    args, whole, no_reports, monkeypatch, tmp_path, capsys
):
    """What was begun ends as it was planned, with another label between the old ones in the source by now."""
    folder = shutil.copytree(args.input, tmp_path / "all")
    args = dataclasses.replace(args, input=str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(append, "finish", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            append.main(args)
    (folder / "l").mkdir()
    shutil.copy(folder / "k/02.wav", folder / "l/later.wav")
    assert same(append.main(args), whole)
    out = capsys.readouterr().out
    assert "resuming: 3 of 3 shards are finished" in out
    assert "note: 1 clips came to the source after this was begun: run the command again to add them" in out
    grown = append.main(args)
    assert grown.num_clips == 15 and grown.label_names == ("k", "m", "l")


@pytest.mark.process
@pytest.mark.cluster
def test_a_killed_addition_goes_on_and_ends_the_same(ray_session, args, whole, parts, no_reports, tmp_path):
    folder = shutil.copytree(parts / "all", tmp_path / "all")
    args = dataclasses.replace(args, input=str(folder))
    command = [
        sys.executable, "pipelines/preprocess.py", "--source", "folder", "--input", args.input, "--output",
        args.output, "--labels-from-folders", "--mlflow-uri", args.mlflow_uri, "--append", "--clips-per-shard", "3",
        "--num-workers", "1",
    ]  # fmt: skip
    old = open_dataset(args.output)
    gate = Gate(folder / "m/07.wav")
    address = ray_session.get_runtime_context().gcs_address
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | PATH | {"RAY_ADDRESS": address}) as process:
        gate.wait(lambda: process.poll() is None)
        gate.open()
        process.kill()
    gate.wait_until_left()
    done = {p: p.stat().st_mtime_ns for p in Path(args.output).glob("status=ok/*.parquet")}
    assert len(old.shards) < len(done) < len(old.shards) + 3
    assert open_dataset(args.output).info == old.info
    assert sum(verify_dataset(args.output)) == old.num_clips
    grown = append.main(args)
    assert same(grown, whole) and all(p.stat().st_mtime_ns == t for p, t in done.items())
