"""Preprocess from and to a real S3 server on loopback, and through a connection that breaks in the middle."""

import dataclasses
import socket
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.exit_codes import exit_code
from helpers.faults import wait_for
from helpers.loopback_s3 import ask_once

from ajepa import retries, storage
from ajepa.audio import remote_file
from ajepa.audio.decode import decode
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import PLAN, open_dataset
from ajepa.shards.reader import ShardReader
from ajepa.shards.verify import verify_dataset
from pipelines import preprocess
from pipelines.jobs.preprocess import main
from pipelines.preprocess import PreprocessArgs

FRONT_END = FrontEndConfig(clip_frames=256)


@pytest.fixture(scope="module")
def uploaded(s3, sounds):
    """The folder of sounds in the bucket, one of them with a space, a percent sign and an umlaut in its key."""
    for path in sorted(sounds.rglob("*.wav")):
        key = path.relative_to(sounds).as_posix().replace("tone 9", "töne 9% #1")
        with storage.atomic_output(f"s3://sounds/in/{key}") as stream:
            stream.write(path.read_bytes())
    return "s3://sounds/in"


@pytest.fixture
def command(ray_session, capfd, mlflow_uri):
    """command(option, ...) is preprocess.py on the session's Ray: its exit code and all that it printed."""

    def run(*options: str) -> tuple[object, str]:
        argv = [*options, "--mlflow-uri", mlflow_uri]
        return exit_code(lambda: preprocess.main(preprocess.parse_args(argv))), "".join(capfd.readouterr())

    return run


@pytest.fixture
def workers_that_ask_once(monkeypatch):
    """Workers for which a store is away once the client has made its own tries."""

    def write_shards(*args, **options):
        from ajepa import retries
        from pipelines.rayjobs import data_tasks

        waits, retries.WAITS = retries.WAITS, ()
        try:
            return data_tasks.write_shards(*args, **options)
        finally:
            retries.WAITS = waits

    monkeypatch.setattr("pipelines.rayjobs.data_tasks.write_shards", write_shards)


@pytest.mark.ray
def test_a_dataset_in_a_bucket_grows(uploaded, command, monkeypatch):
    """A store cannot rename: new shards have their last names from the start, and the old dataset.json without them."""
    options = ("--source", "folder", "--clip-frames", "256", "--output", "s3://sounds/grown", "--clips-per-shard", "4")
    monkeypatch.setattr("pipelines.jobs.preprocess.save_report", lambda *_: None)
    code, out = command(*options, "--input", f"{uploaded}/tone")
    assert code == 0 and "10 clips ok" in out, out
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.jobs.append.finish", lambda *_: sys.exit(9))
        code, out = command(*options, "--input", f"{uploaded}", "--append", "--duplicates", "drop")
    assert code == 9 and "0 clips of the source are known, 20 new" in out, out
    assert sum(verify_dataset("s3://sounds/grown")) == 10
    code, out = command(*options, "--input", f"{uploaded}", "--append", "--duplicates", "drop")
    assert code == 0 and "resuming: 5 of 5 shards are finished" in out, out
    assert "20 clips ok, 10 bad (10 duplicate" in out and "listed in report/duplicates.csv" in out
    assert sum(verify_dataset("s3://sounds/grown")) == 20
    assert not [name for name in storage.contents("s3://sounds/grown") if name.startswith(PLAN)]


@pytest.mark.ray
def test_from_a_bucket_to_a_bucket(uploaded, command, sounds, tmp_path, mlflow_uri):
    options = ("--source", "folder", "--input", uploaded, "--labels-from-folders", "--clip-frames", "256")
    to = ("--output", "s3://sounds/shards", "--clips-per-shard", "6")
    code, out = command(*options, *to)
    assert code == 0, out
    assert "20 clips ok, 0 bad" in out
    dataset = open_dataset("s3://sounds/shards")
    assert (dataset.num_clips, dataset.label_names) == (20, ("noise", "tone"))
    assert sum(verify_dataset("s3://sounds/shards")) == 20
    assert "in/tone/töne 9% #1.wav" in " ".join(dataset.read_columns(["uri"])["uri"].to_pylist())
    batch = ShardReader(dataset, crop_frames=64, batch_size=4, seed=0).batch(0)
    assert batch.log_mel.shape == (4, 128, 64)
    assert storage.path_type("s3://sounds/shards/report/report.md") == "file"
    code, out = command(*options, *to)
    assert code == 0 and "nothing to do" in out, out
    local = main(
        PreprocessArgs(
            source="folder", input=str(sounds), output=str(tmp_path / "local"), labels_from_folders=True,
            front_end=FRONT_END, mlflow_uri=mlflow_uri,
        )
    )  # fmt: skip
    digests = [set(d.read_columns(["digest"])["digest"].to_pylist()) for d in (local, dataset)]
    assert digests[0] == digests[1]
    assert (local.statistics.std == dataset.statistics.std).all()


@pytest.mark.ray
def test_a_bucket_that_fills_up_stops_the_job_and_loses_nothing(uploaded, command, wire):
    output = "s3://sounds/filled"
    options = ("--source", "folder", "--input", uploaded, "--clip-frames", "256", "--output", output)
    wire.fill(r"filled/status=ok/shard-0000[1-9]")
    code, out = command(*options, "--clips-per-shard", "5")
    (said,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert code == 2 and "the bucket is full" in said and "fix the cause and run the same command again" in said, out
    assert "Traceback" not in out
    wire.mend()
    code, out = command(*options, "--clips-per-shard", "5")
    assert code == 0 and "20 clips ok, 0 bad" in out, out
    assert sum(verify_dataset(output)) == 20


@pytest.mark.ray
def test_a_manifest_of_uris(uploaded, command, tmp_path):
    """Bad clips of a bucket are named; what is not there is one of them."""
    with storage.atomic_output("s3://sounds/in/broken.wav") as stream:
        stream.write(b"not sound")
    text = "uri,labels\ns3://sounds/in/tone/tone 1.wav,tone\nnoise/noise 2.wav,noise\nbroken.wav,\ngone.wav,\n"
    storage.write_text("s3://sounds/in/list.csv", text)
    output = str(tmp_path / "shards")
    options = ("--source", "manifest", "--input", "s3://sounds/in/list.csv", "--output", output)
    code, out = command(*options, "--clip-frames", "256")
    assert code == 0, out
    assert "2 clips ok, 2 bad (1 decode, 1 read" in out
    (bad,) = Path(output).glob("status=bad/*.parquet")
    errors = {r["uri"].rpartition("/")[2]: r["error"] for r in pq.read_table(bad).to_pylist()}
    assert errors["gone.wav"].startswith("read: ") and errors["broken.wav"].startswith("decode: ")


@pytest.mark.process
def test_a_read_through_a_short_break_is_whole(uploaded, wire, monkeypatch):
    """The connection is cut while nothing is read yet and there again when the reader has waited once."""
    whole = decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    waits = []
    monkeypatch.setattr(retries, "pause", lambda seconds, _: (waits.append(seconds), wire.mend()))
    wire.break_now()
    again = decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    assert waits and (again.waveform == whole.waveform).all()


@pytest.mark.process
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_connection_lost_in_the_middle_of_a_file_is_no_short_clip(uploaded, wire, monkeypatch):
    """libsndfile takes a failed read for the end of the file; the clip must not become a shorter good one."""
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    monkeypatch.setattr(remote_file, "READ_AHEAD", 4096)
    read = remote_file.RemoteFile.readinto
    calls = []

    def cut_after_two(self, buffer):
        calls.append(1)
        if len(calls) == 3:
            wire.break_now()
        return read(self, buffer)

    monkeypatch.setattr(remote_file.RemoteFile, "readinto", cut_after_two)
    with pytest.raises(storage.UnreachableError, match="cannot reach"):
        decode(f"{uploaded}/tone/tone 3.wav", 16_000)
    assert len(calls) >= 3


@pytest.mark.ray
def test_a_job_whose_store_goes_away_stops_clearly_and_goes_on(
    s3, wire, command, workers_that_ask_once, sounds, ray_session
):
    for i in range(45):
        s3.put_object(Key=f"many/{i:03d}.wav", Body=(sounds / "tone" / f"tone {i % 9}.wav").read_bytes())
    options = (
        "--source", "folder", "--input", "s3://sounds/many", "--output", "s3://sounds/broken", "--clip-frames", "256",
        "--clips-per-shard", "3", "--num-workers", "1",
    )  # fmt: skip
    wire.cut_at = b"/sounds/many/030.wav HTTP"  # a clip of the eleventh shard; the ten before it are written by then
    code, out = command(*options)
    assert code == 2, out
    assert "error: stopped: " in out and "run the same command again" in out and "Traceback" not in out
    assert len([o for o in s3.objects.filter(Prefix="broken/status=ok/") if o.key.endswith(".parquet")]) == 10
    wait_for(lambda: ray_session.available_resources().get("CPU") == 2, "the end of the tasks that were under way")
    wire.mend()
    with pytest.raises(UserError, match="no shard folder, or one that is not finished"):
        open_dataset("s3://sounds/broken")
    code, out = command(*options)
    assert code == 0, out
    assert "resuming: 10 of 15 shards" in out and "45 clips ok, 0 bad" in out


@pytest.mark.ray
@pytest.mark.parametrize("file", ["manifest.parquet", "plan.json"])
def test_a_store_that_goes_away_while_the_plan_is_written_is_one_line(file, uploaded, s3, wire, command, monkeypatch):
    ask_once(monkeypatch, wire)
    monkeypatch.setattr(retries, "WAITS", ())
    name = f"unplanned-{file}"
    options = (
        "--source", "folder", "--input", f"{uploaded}/tone", "--output", f"s3://sounds/{name}", "--clip-frames", "256",
    )  # fmt: skip
    wire.cut_at = f" /sounds/{name}/{PLAN}/{file}".encode()
    code, out = command(*options)
    assert code == 2 and "Traceback" not in out, out
    assert len([line for line in out.splitlines() if line.startswith("error: ")]) == 1
    wire.mend()
    assert not list(s3.objects.filter(Prefix=f"{name}/{PLAN}/{file}"))
    code, out = command(*options)
    assert code == 0 and "10 clips ok, 0 bad" in out, out


@pytest.mark.slow
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
