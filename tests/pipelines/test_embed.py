"""The embed job on a real Ray: every clip accounted for, resumable, readable by everyone; neighbours; the model."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import mlflow
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.faults import PATH, PATIENCE, ROOT, Gate
from helpers.training_state import save_run

from ajepa.errors import UserError
from ajepa.inference.embeddings import EMBEDDINGS_JSON, open_embeddings
from ajepa.inference.pretrained import export_encoder, load_encoder
from pipelines.embed import EmbedArgs, NeighboursArgs
from pipelines.jobs.embed import main, neighbours

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, small_dataset) -> str:
    """A run folder with two checkpoints, and run.json as pretraining leaves it."""
    folder = tmp_path_factory.mktemp("encoder") / "run"
    save_run(folder, small_dataset, 2)
    (folder / "run.json").write_text(json.dumps({"mlflow_run": "abc123"}))
    return str(folder)


def options(sounds: Path, encoder: str, folder: Path, mlflow_uri: str) -> EmbedArgs:
    return EmbedArgs(
        encoder=encoder, input=str(sounds), output=str(folder / "emb"), labels_from_folders=True, clips_per_part=6,
        mlflow_uri=mlflow_uri, num_workers=1,
    )  # fmt: skip


@pytest.fixture
def args(ray_session, sounds, encoder, tmp_path, mlflow_uri):
    return options(sounds, encoder, tmp_path, mlflow_uri)


@pytest.fixture(scope="module")
def finished(ray_session, sounds, encoder, tmp_path_factory, new_mlflow):
    """The options of a finished job of as many workers as there are CPUs, and what it printed. For reading only."""
    folder = tmp_path_factory.mktemp("finished")
    args = dataclasses.replace(options(sounds, encoder, folder, new_mlflow(folder)), num_workers=None, log_model=True)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(args)
    return args, said.getvalue()


@pytest.fixture(scope="module")
def frames(finished, tmp_path_factory):
    """A vector a frame, written over a folder of vectors of clips. For reading only."""
    args, _ = finished
    copy = shutil.copytree(args.output, tmp_path_factory.mktemp("frames") / "emb")
    changes = {"output": str(copy), "level": "frame", "overwrite": True, "log_model": False, "num_workers": 1}
    return main(dataclasses.replace(args, **changes))


def rows(output: str, status: str = "ok") -> list[dict]:
    files = sorted(Path(output, f"status={status}").glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


def test_a_folder_becomes_embeddings(finished, encoder):
    args, said = finished
    embeddings = open_embeddings(args.output)
    assert (embeddings.num_clips, embeddings.num_failed, len(embeddings.parts)) == (20, 0, 4)
    assert not list(Path(args.output).glob("_plan*")) and not list(Path(args.output).rglob("*.tmp"))
    model, found = load_encoder(encoder), rows(args.output)
    assert embeddings.encoder["digest"] == model.about["digest"]
    for row in (found[0], found[13]):
        expected = model.clip_embeddings(*soundfile.read(row["uri"]))[0]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)
        assert embeddings.label_names[row["labels"][0]] == row["clip_id"].split("/")[0]
    run = mlflow.MlflowClient(args.mlflow_uri).get_run(embeddings.info["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.metrics["data/clips_ok"] == 20
    assert (run.data.tags["ajepa.job"], run.data.tags["ajepa.pretrain_run"]) == ("embed", "abc123")
    assert run.data.params["encoder_digest"] == model.about["digest"]
    assert "20 clips ok, 0 bad, clip embeddings of" in said


def test_pandas_pyarrow_and_duckdb_read_the_same(frames):
    folder = Path(frames.path, "status=ok")
    table = pyarrow.dataset.dataset(folder, partitioning=None).to_table().sort_by("clip_id")
    frame = pd.read_parquet(folder).sort_values("clip_id")
    duck = duckdb.sql(f"SELECT clip_id, time_ms, embedding FROM '{folder}/*.parquet' ORDER BY clip_id").fetchall()
    assert len(table) == len(frame) == len(duck) == 20
    for a, b, (clip, times, c) in zip(table.to_pylist(), frame.itertuples(), duck, strict=True):
        assert a["clip_id"] == b.clip_id == clip
        vectors = np.array(a["embedding"])
        assert vectors.shape == (len(times), frames.dimension)
        assert (vectors == np.stack(b.embedding)).all() and (vectors == np.array(c)).all()


def test_shards_are_taken_as_shards(args, small_dataset):
    embeddings = main(
        dataclasses.replace(args, input=small_dataset.path, labels_from_folders=False, clips_per_part=None)
    )
    assert embeddings.info["input"]["source"] == "shards"
    assert embeddings.info["input"]["hash"] == small_dataset.content_hash
    assert {r["clip_id"] for r in rows(args.output)} == {f"clip{i:02d}" for i in range(40)}
    assert embeddings.label_names == small_dataset.label_names
    assert {r["fold"] for r in rows(args.output)} == {1, 2, 3, 4, 5}


def test_a_manifest_is_embedded(args, sounds, tmp_path):
    files = sorted(sounds.rglob("*.wav"))
    (tmp_path / "list.csv").write_text("uri,clip_id,start_s\n" + "".join(f"{f},{f.stem},0.25\n" for f in files))
    main(dataclasses.replace(args, source="manifest", input=str(tmp_path / "list.csv"), labels_from_folders=False))
    assert {(r["clip_id"], r["start_s"]) for r in rows(args.output)} == {(f.stem, 0.25) for f in files}


def test_long_recordings_can_be_cut(args):
    main(dataclasses.replace(args, segment=0.5, segment_last="drop", clips_per_part=None))
    assert {r["duration_s"] for r in rows(args.output)} == {0.5}


def test_bad_files_are_counted_with_their_reason(args, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    soundfile.write(folder / "good.wav", 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "two samples.wav", np.zeros(2), 16_000)  # a click: silence follows
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not sound")
    embeddings = main(dataclasses.replace(args, input=str(folder), labels_from_folders=False))
    errors = {r["clip_id"]: r["error"] for r in rows(args.output, "bad")}
    assert set(errors) == {"nan.wav", "empty.wav", "text.wav"}
    assert "NaN" in errors["nan.wav"] and {r["clip_id"] for r in rows(args.output)} == {"good.wav", "two samples.wav"}
    assert (embeddings.num_clips, embeddings.num_failed) == (2, 3)
    assert "2 clips ok, 3 bad (2 decode, 1 waveform; see status=bad)" in capsys.readouterr().out


def test_the_same_command_again_does_nothing(finished, capsys):
    args, _ = finished
    before = {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}
    main(args)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(args.output).rglob("*")}


def test_other_settings_into_the_same_output_are_refused(finished, frames):
    args, _ = finished
    with pytest.raises(UserError, match=r"finished embedding job made from other .*level: clip -> frame"):
        main(dataclasses.replace(args, level="frame"))
    assert frames.level == "frame"  # where --overwrite was given


def test_a_missing_part_comes_back_the_same(finished, args):
    parts = {p.name: p.read_bytes() for p in Path(finished[0].output, "status=ok").iterdir()}
    main(args)
    again = {p.name: p.read_bytes() for p in Path(args.output, "status=ok").iterdir()}
    assert parts == again


@pytest.fixture(scope="module")
def many(ray_session, sounds, encoder, tmp_path_factory, new_mlflow):
    """The options of a finished job of 60 clips in 10 parts."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(3):
        for path in sorted(sounds.rglob("*.wav")):
            target = folder / "in" / path.parent.name / f"{path.stem} {i}.wav"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    args = options(folder / "in", encoder, folder, new_mlflow(folder))
    main(args)
    return args


def command(args: EmbedArgs, ray_session) -> subprocess.Popen:
    options = [
        "--encoder", args.encoder, "--input", args.input, "--output", args.output, "--labels-from-folders",
        "--clips-per-part", str(args.clips_per_part), "--mlflow-uri", str(args.mlflow_uri), "--num-workers", "1",
    ]  # fmt: skip
    address = ray_session.get_runtime_context().gcs_address
    return subprocess.Popen(
        [sys.executable, "pipelines/embed.py", *options],
        cwd=ROOT, env=os.environ | PATH | {"RAY_ADDRESS": address}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_job_goes_on_and_ends_the_same(ray_session, many, tmp_path, number):
    stopped = dataclasses.replace(many, output=str(tmp_path / "emb"))
    gate = Gate(Path(many.input, "noise", "noise 5 1.wav"))
    with command(stopped, ray_session) as job:
        gate.wait(lambda: job.poll() is None)
        gate.open()
        job.send_signal(number)
        _, said = job.communicate(timeout=PATIENCE)
    gate.wait_until_left()
    assert job.returncode == (130 if number == signal.SIGINT else -9)
    assert number == signal.SIGKILL or "run the same command again" in said
    with pytest.raises(UserError, match="no embedding folder, or one that is not finished"):
        open_embeddings(stopped.output)
    done = {p: p.stat().st_mtime_ns for p in Path(stopped.output).glob("status=ok/*.parquet")}
    assert 0 < len(done) < 10
    assert main(stopped).num_clips == 60
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert rows(stopped.output) == rows(many.output)


def test_neighbours_of_a_clip_begin_with_itself(finished, sounds, capsys):
    query = sounds / "tone" / "tone 3.wav"
    found = neighbours(NeighboursArgs(neighbours=str(query), output=finished[0].output, top=3))
    assert len(found) == 3 and found[0].clip_id == "tone/tone 3.wav" and found[0].labels == ("tone",)
    assert found[0].similarity == pytest.approx(1)
    line = capsys.readouterr().out.splitlines()[-4].split()
    assert line[:4] == ["1", "+1.0000", "tone/tone", "3.wav"] and line[-1] == "tone"


def test_neighbours_need_the_encoder_of_the_embeddings(finished, encoder, sounds, tmp_path):
    recording = str(sounds / "tone" / "tone 3.wav")
    query = NeighboursArgs(neighbours=recording, output=finished[0].output, top=1)
    export_encoder(encoder, str(tmp_path / "same"))
    assert neighbours(dataclasses.replace(query, encoder=str(tmp_path / "same")))[0].clip_id == "tone/tone 3.wav"
    older = f"{encoder}/checkpoints/step-00000001"
    with pytest.raises(UserError, match="made by another encoder"):
        neighbours(dataclasses.replace(query, encoder=older))
    with pytest.raises(UserError, match=r"cannot load the encoder.*--encoder says where it is"):
        neighbours(dataclasses.replace(query, encoder=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"--neighbours .*: read: "):
        neighbours(dataclasses.replace(query, neighbours=str(tmp_path / "gone.wav")))


def test_an_encoder_that_comes_with_the_package_is_named_in_what_it_made(args, sounds, monkeypatch, capsys):
    monkeypatch.chdir(Path(args.output).parent)
    embeddings = main(dataclasses.replace(args, encoder="nano"))
    assert (embeddings.num_clips, embeddings.dimension) == (20, 192) and embeddings.encoder["source"] == "nano"
    query = NeighboursArgs(neighbours=str(sounds / "tone" / "tone 3.wav"), output=args.output, top=1, encoder="nano")
    assert neighbours(query)[0].clip_id == "tone/tone 3.wav"


def test_the_encoder_can_be_logged_beside_the_run(finished):
    args, _ = finished
    client = mlflow.MlflowClient(args.mlflow_uri)
    run = client.get_run(open_embeddings(args.output).info["mlflow_run"])
    assert run.info.status == "FINISHED"
    (output,) = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).name == "encoder"


def test_more_workers_than_cpus_are_refused(args):
    with pytest.raises(UserError, match="--num-workers 99 needs as many CPUs; the cluster has 2"):
        main(dataclasses.replace(args, num_workers=99))


def test_an_encoder_that_changes_meanwhile_stops_the_job(args, encoder, monkeypatch):
    """Nothing of another encoder gets into the folder."""
    from pipelines.jobs import parts

    started = parts.run_parts

    def with_another(clips, job, workers):
        settings = dataclasses.replace(job.actor_settings, digest="other")
        return started(clips, dataclasses.replace(job, actor_settings=settings), workers)

    monkeypatch.setattr(parts, "run_parts", with_another)
    with pytest.raises(UserError, match=r"stopped: the encoder .* changed while the job ran"):
        main(args)
    assert not Path(args.output, EMBEDDINGS_JSON).exists() and not rows(args.output)
