"""The preprocess job on a real Ray: every clip accounted for, resumable, repeatable."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.faults import PATH, PATIENCE, ROOT, Gate

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from pipelines.jobs.preprocess import main
from pipelines.preprocess import PreprocessArgs

pytestmark = pytest.mark.ray
FRONT_END = FrontEndConfig(clip_frames=256)


def options(sounds: Path, folder: Path, mlflow_uri: str) -> PreprocessArgs:
    return PreprocessArgs(
        source="folder", input=str(sounds), output=str(folder / "shards"), labels_from_folders=True,
        mlflow_uri=mlflow_uri, front_end=FRONT_END, clips_per_shard=6,
    )  # fmt: skip


@pytest.fixture
def args(ray_session, sounds, tmp_path, mlflow_uri):
    return options(sounds, tmp_path, mlflow_uri)


@pytest.fixture(scope="module")
def finished(ray_session, sounds, tmp_path_factory, new_mlflow):
    """The options of a job that is finished. Its dataset is for reading only."""
    folder = tmp_path_factory.mktemp("finished")
    args = options(sounds, folder, new_mlflow(folder))
    main(args)
    return args


@pytest.fixture
def no_report(monkeypatch):
    """Without the end report, whose pictures take longer than a small job."""
    monkeypatch.setattr("pipelines.jobs.preprocess.save_report", lambda *_: None)


def rows_by_status(output: str) -> dict[str, list[dict]]:
    return {
        status: [
            row
            for path in sorted(Path(output, f"status={status}").glob("*"))
            for row in pq.read_table(path).to_pylist()
        ]
        for status in ("ok", "bad")
    }


def test_a_folder_becomes_a_dataset(finished):
    dataset = open_dataset(finished.output)
    assert (dataset.num_clips, dataset.num_failed, dataset.label_names) == (20, 0, ("noise", "tone"))
    rows = rows_by_status(finished.output)["ok"]
    assert len({r["clip_id"] for r in rows}) == 20 and len(dataset.shards) == 4
    assert {r["labels"][0] for r in rows if r["clip_id"].startswith("tone")} == {1}
    assert not list(Path(finished.output).glob("_plan*")) and not list(Path(finished.output).rglob("*.tmp"))
    client = mlflow.MlflowClient(finished.mlflow_uri)
    run = client.get_run(dataset.info["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.metrics["data/clips_ok"] == 20
    inputs = {data.tags[0].value: data.dataset.digest for data in run.inputs.dataset_inputs}
    assert inputs == {"source": dataset.info["plan"]["manifest_hash"], "result": dataset.content_hash}
    assert run.data.tags["mlflow.note.content"].startswith("**20 clips** of ")
    listed = {Path(f.path).name for f in client.list_artifacts(run.info.run_id, "report")}
    assert listed == {p.name for p in Path(finished.output, "report").iterdir()} >= {"report.md", "log_mels.png"}


def test_bad_files_are_counted_with_their_reason(args, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    soundfile.write(folder / "good.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "two samples.wav", np.zeros(2), 16_000)  # a click: silence follows
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not sound")
    (folder / "corrupt.flac").write_bytes(b"fLaC" + bytes(range(200)))
    (folder / "notes.txt").write_text("left out")
    dataset = main(dataclasses.replace(args, input=str(folder), labels_from_folders=False))
    rows = rows_by_status(args.output)
    assert {r["clip_id"] for r in rows["ok"]} == {"good.wav", "silent.wav", "two samples.wav"}
    errors = {r["clip_id"]: r["error"] for r in rows["bad"]}
    assert set(errors) == {"nan.wav", "empty.wav", "text.wav", "corrupt.flac"}
    assert "NaN" in errors["nan.wav"] and "0 bytes" in errors["empty.wav"]
    assert dataset.num_failed == 4
    out = capsys.readouterr().out
    assert "3 clips ok, 4 bad (3 decode, 1 waveform" in out and "1 files without an audio extension" in out


def test_the_same_command_again_does_nothing(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(finished.output).rglob("*")}
    main(finished)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(finished.output).rglob("*")}


def test_other_settings_into_the_same_output_are_refused(finished, no_report, tmp_path):
    copy = shutil.copytree(finished.output, tmp_path / "copy")
    other = dataclasses.replace(finished, output=str(copy), front_end=FrontEndConfig(clip_frames=128))
    with pytest.raises(UserError, match="clip_frames: 256 -> 128"):
        main(other)
    assert main(dataclasses.replace(other, overwrite=True)).front_end.clip_frames == 128


def test_the_content_hash_does_not_depend_on_workers_or_shard_size(finished, no_report, tmp_path):
    wanted = open_dataset(finished.output)
    hashes = {wanted.content_hash}
    for i, (workers, size) in enumerate([(1, 3), (2, 20)]):
        other = dataclasses.replace(finished, output=str(tmp_path / f"o{i}"), num_workers=workers, clips_per_shard=size)
        dataset = main(other)
        hashes.add(dataset.content_hash)
        assert (dataset.statistics.mean == wanted.statistics.mean).all()
    assert len(hashes) == 1


@pytest.mark.process
@pytest.mark.cluster
def test_a_killed_job_goes_on_and_ends_the_same(ray_session, args, no_report, sounds, tmp_path):
    folder = shutil.copytree(sounds, tmp_path / "many")
    for i in range(40):
        shutil.copy(sounds / "tone" / f"tone {i % 10}.wav", folder / "tone" / f"extra {i:03d}.wav")
    many = dataclasses.replace(args, input=str(folder), output=str(tmp_path / "killed"), clips_per_shard=4)
    command = [
        sys.executable, "pipelines/preprocess.py", "--source", "folder", "--input", many.input, "--output",
        many.output, "--labels-from-folders", "--mlflow-uri", args.mlflow_uri, "--clip-frames", "256",
        "--clips-per-shard", "4", "--num-workers", "1",
    ]  # fmt: skip
    gate = Gate(folder / "tone" / "extra 020.wav")
    address = ray_session.get_runtime_context().gcs_address
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | PATH | {"RAY_ADDRESS": address}) as job:
        gate.wait(lambda: job.poll() is None)
        gate.open()
        job.kill()
    gate.wait_until_left()
    with pytest.raises(UserError, match="no shard folder, or one that is not finished"):
        open_dataset(many.output)
    done = {p: p.stat().st_mtime_ns for p in Path(many.output).glob("status=ok/*.parquet")}
    assert 0 < len(done) < 15
    resumed = main(many)
    assert resumed.num_clips == 60
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    whole = main(dataclasses.replace(many, output=str(tmp_path / "whole")))
    assert resumed.content_hash == whole.content_hash
    assert (resumed.statistics.std == whole.statistics.std).all()


def test_clips_a_corpus_lists_and_lacks_are_counted_and_named(args, sounds, tmp_path, capsys):
    folder = tmp_path / "commands"
    for word in ("yes", "no"):
        (folder / word).mkdir(parents=True)
        (folder / word / "a.wav").write_bytes((sounds / "tone" / "tone 1.wav").read_bytes())
    (folder / "validation_list.txt").write_text("yes/lost.wav\n")
    (folder / "testing_list.txt").write_text("no/a.wav\n")
    dataset = main(dataclasses.replace(args, source="speech_commands", input=str(folder), labels_from_folders=False))
    assert dataset.num_clips == 2
    assert Path(args.output, "missing.txt").read_text() == "yes/lost.wav\n"
    assert "1 clips of the source have no audio file, listed in" in capsys.readouterr().out


def test_esc10_gives_400_good_rows(args, esc10):
    dataset = main(
        dataclasses.replace(args, source="esc50", input=str(esc10), labels_from_folders=False, clips_per_shard=None)
    )
    assert (dataset.num_clips, dataset.num_failed, len(dataset.label_names)) == (400, 0, 10)
    assert sorted(set(dataset.read_columns(["fold"])["fold"].to_pylist())) == [1, 2, 3, 4, 5]


def test_spoken_digits_give_3000_good_rows(args, fsdd):
    """Read by pyarrow, pandas and DuckDB alike."""
    dataset = main(dataclasses.replace(args, input=str(fsdd), labels_from_folders=False, clips_per_shard=None))
    assert (dataset.num_clips, dataset.num_failed) == (3000, 0)
    shards = f"{args.output}/status=ok/*.parquet"
    ((count,),) = duckdb.sql(f"SELECT count(DISTINCT clip_id) FROM '{shards}'").fetchall()
    assert count == 3000
    one = sorted(Path(args.output, "status=ok").iterdir())[0]
    frames = [pq.read_table(one).to_pandas(), pd.read_parquet(one), duckdb.sql(f"SELECT * FROM '{one}'").df()]
    arrays = [np.frombuffer(bytes(f.log_mel.iloc[5]), "<f2").reshape(128, -1) for f in frames]
    assert (arrays[0] == arrays[1]).all() and (arrays[0] == arrays[2]).all()
    assert np.isfinite(arrays[0][:, : frames[0].num_frames.iloc[5]]).all()


@pytest.mark.process
@pytest.mark.cluster
def test_ray_job_submit_runs_the_same_command(ray_session, sounds, tmp_path, new_mlflow):
    dashboard = ray_session._private.worker.global_worker.node.webui_url
    beside = mlflow.MlflowClient(new_mlflow(tmp_path))
    command = [
        "ray", "job", "submit", "--address", f"http://{dashboard}", "--working-dir", str(ROOT), "--",
        "python", "pipelines/preprocess.py", "--source", "folder", "--input", str(sounds), "--output",
        str(tmp_path / "shards"), "--clip-frames", "256",
    ]  # fmt: skip
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if "No available agent" not in done.stderr:  # the part of Ray that takes jobs starts last
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 clips ok, 0 bad" in done.stdout
    dataset = open_dataset(str(tmp_path / "shards"))
    assert dataset.num_clips == 20
    # In mlflow.db beside the output: the job's own directory is temporary.
    assert beside.get_run(dataset.info["mlflow_run"]).info.status == "FINISHED"
