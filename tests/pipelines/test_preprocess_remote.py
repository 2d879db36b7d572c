"""Preprocess from and to a real S3 server on loopback, and through a connection that breaks in the middle."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.faults import PATIENCE

from ajepa import storage
from ajepa.audio.decode import decode
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.shards.verify import verify_dataset
from pipelines.jobs.preprocess import main
from pipelines.preprocess import PreprocessArgs

pytestmark = pytest.mark.ray
FRONT_END = FrontEndConfig(clip_frames=256)


@pytest.fixture(scope="module")
def uploaded(s3, sounds):
    """The folder of sounds in the bucket, one of them with a space, a percent sign and an umlaut in its key."""
    for path in sorted(sounds.rglob("*.wav")):
        key = path.relative_to(sounds).as_posix().replace("tone 9", "töne 9% #1")
        with storage.atomic_output(f"s3://sounds/in/{key}") as stream:
            stream.write(path.read_bytes())
    return "s3://sounds/in"


def run_cli(*options: str, port: int, tmp_path: Path, fresh_ray: bool = False, **more: str) -> subprocess.Popen:
    env = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"} | more
    command = [sys.executable, "pipelines/preprocess.py", *options, "--mlflow-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_from_a_bucket_to_a_bucket(here, uploaded, s3, sounds, tmp_path, ray_session):
    """Its own Ray: the workers of the session's do not know the server."""
    options = ("--source", "folder", "--input", uploaded, "--labels-from-folders", "--clip-frames", "256")
    job = run_cli(*options, "--output", "s3://sounds/shards", "--clips-per-shard", "6", port=s3, tmp_path=tmp_path)
    out = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 0, out
    assert "20 clips ok, 0 bad" in out
    dataset = open_dataset("s3://sounds/shards")
    assert (dataset.num_clips, dataset.label_names) == (20, ("noise", "tone"))
    assert sum(verify_dataset("s3://sounds/shards")) == 20
    assert "in/tone/töne 9% #1.wav" in " ".join(dataset.read_columns(["uri"])["uri"].to_pylist())
    batch = ShardReader(dataset, crop_frames=64, batch_size=4, seed=0).batch(0)
    assert batch.log_mel.shape == (4, 128, 64)
    assert storage.kind("s3://sounds/shards/report/report.md") == "file"
    job = run_cli(*options, "--output", "s3://sounds/shards", "--clips-per-shard", "6", port=s3, tmp_path=tmp_path)
    out = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 0 and "nothing to do" in out, out
    local = main(
        PreprocessArgs(
            source="folder", input=str(sounds), output=str(tmp_path / "local"), labels_from_folders=True,
            front_end=FRONT_END, mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db",
        )
    )  # fmt: skip
    digests = [set(d.read_columns(["digest"])["digest"].to_pylist()) for d in (local, dataset)]
    assert digests[0] == digests[1]
    assert (local.statistics.std == dataset.statistics.std).all()


def test_a_manifest_of_uris(here, uploaded, s3, tmp_path):
    """Bad clips of a bucket are named; what is not there is one of them."""
    with storage.atomic_output("s3://sounds/in/broken.wav") as stream:
        stream.write(b"not sound")
    text = "uri,labels\ns3://sounds/in/tone/tone 1.wav,tone\nnoise/noise 2.wav,noise\nbroken.wav,\ngone.wav,\n"
    storage.write_text("s3://sounds/in/list.csv", text)
    output = str(tmp_path / "shards")
    options = ("--source", "manifest", "--input", "s3://sounds/in/list.csv", "--output", output)
    job = run_cli(*options, "--clip-frames", "256", port=s3, tmp_path=tmp_path)
    out = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 0, out
    assert "2 clips ok, 2 bad (1 decode, 1 read" in out
    (bad,) = Path(output).glob("status=bad/*.parquet")
    errors = {r["uri"].rpartition("/")[2]: r["error"] for r in pq.read_table(bad).to_pylist()}
    assert errors["gone.wav"].startswith("read: ") and errors["broken.wav"].startswith("decode: ")


def test_a_read_through_a_short_break_is_whole(here, uploaded, wire, monkeypatch):
    """The connection is cut while nothing is read yet and there again when the reader has waited once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    whole = decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    waits = []
    monkeypatch.setattr(storage, "sleep", lambda seconds: (waits.append(seconds), setattr(wire, "cut", False)))
    wire.break_now()
    again = decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    assert waits and (again.waveform == whole.waveform).all()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_lost_in_the_middle_of_a_file_is_no_short_clip(here, uploaded, wire, monkeypatch, sounds):
    """libsndfile takes a failed read for the end of the file; the clip must not become a shorter good one."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    monkeypatch.setattr(storage, "WAITS", ())
    monkeypatch.setattr(storage, "READ_AHEAD", 4096)
    read = storage.RemoteFile.readinto
    calls = []

    def cut_after_two(self, buffer):
        calls.append(1)
        if len(calls) == 3:
            wire.break_now()
        return read(self, buffer)

    monkeypatch.setattr(storage.RemoteFile, "readinto", cut_after_two)
    with pytest.raises(storage.UnreachableError, match="cannot reach"):
        decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    assert len(calls) >= 3


def test_a_job_whose_store_goes_away_stops_clearly_and_goes_on(here, uploaded, wire, s3, tmp_path):
    for i in range(150):
        source = f"s3://sounds/in/tone/tone {i % 9}.wav"
        with storage.atomic_output(f"s3://sounds/many/{i:03d}.wav") as stream:
            stream.write(storage.open_input(source).read())
    options = (
        "--source", "folder", "--input", "s3://sounds/many", "--output", "s3://sounds/broken", "--clip-frames", "256",
        "--clips-per-shard", "3", "--num-workers", "1",
    )  # fmt: skip
    wire.cut_at = b"/sounds/many/030.wav HTTP"  # a clip of the eleventh shard; the ten before it are written by then
    job = run_cli(*options, port=wire.port, tmp_path=tmp_path)
    out = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 2, out
    assert "error: stopped: " in out and "run the same command again" in out and "Traceback" not in out
    done = {name for name, _ in storage.list_files("s3://sounds/broken/status=ok")}
    assert len(done) == 10
    with pytest.raises(UserError, match="unfinished preprocess job"):
        open_dataset("s3://sounds/broken")
    job = run_cli(*options, port=s3, tmp_path=tmp_path)
    out = job.communicate(timeout=PATIENCE)[0]
    assert job.returncode == 0, out
    assert "resuming: 10 of 50 shards" in out and "150 clips ok, 0 bad" in out


def test_a_store_nobody_answers_for_is_one_line(here, monkeypatch, tmp_path):
    args = PreprocessArgs(source="folder", input="s3://nowhere/in", output=str(tmp_path / "o"), front_end=FRONT_END)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # a port that is taken and refuses
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot reach 's3://nowhere/in'"):
            main(dataclasses.replace(args))
