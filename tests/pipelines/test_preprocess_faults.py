"""What goes wrong in the middle of a job: killed workers, a full disk. The job ends the same, or stops and goes on."""

import dataclasses
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from helpers.faults import Gate

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.verify import verify_dataset
from pipelines import preprocess
from pipelines.jobs.preprocess import main, save_report
from pipelines.preprocess import PreprocessArgs, parse_args

pytestmark = pytest.mark.ray


def options(sounds: Path, folder: Path, mlflow_uri: str) -> PreprocessArgs:
    return PreprocessArgs(
        source="folder", input=str(sounds), output=str(folder / "shards"), labels_from_folders=True,
        mlflow_uri=mlflow_uri, front_end=FrontEndConfig(clip_frames=256), clips_per_shard=3,
    )  # fmt: skip


@pytest.fixture
def args(ray_session, sounds, tmp_path, mlflow_uri):
    return options(sounds, tmp_path, mlflow_uri)


@pytest.fixture(scope="module", autouse=True)
def no_reports():
    """No end reports: their pictures take longer than these jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.jobs.preprocess.save_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(ray_session, sounds, tmp_path_factory, new_mlflow, no_reports):
    """The dataset of a job that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return main(options(sounds, folder, new_mlflow(folder)))


@pytest.mark.disk("700k", "50m")
def test_a_full_disk_stops_the_job_clearly_and_the_same_command_goes_on(args, whole, small_disk):
    folder, enlarge = small_disk
    small = dataclasses.replace(args, output=str(folder / "shards"), num_workers=1)
    with pytest.raises(UserError, match=r"stopped: .*No space left on device.*run the same command again"):
        main(small)
    done = {p: p.stat().st_mtime_ns for p in folder.glob("shards/status=ok/*.parquet")}
    assert 1 <= len(done) < 7
    with pytest.raises(UserError, match="no shard folder, or one that is not finished"):
        open_dataset(small.output)
    enlarge()
    resumed = main(small)
    assert not list(folder.rglob("*.tmp"))  # a worker that is stopped in the middle of a shard leaves one until then
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert resumed.content_hash == whole.content_hash
    assert (resumed.statistics.std == whole.statistics.std).all()


@pytest.mark.cluster
def test_a_killed_worker_loses_nothing(args, sounds, tmp_path):
    """Two of them, each in the middle of a shard."""
    rows = [[path, f"{i:02d} {path.stem}"] for i in range(4) for path in sorted(sounds.rglob("*.wav"))]
    for number in (21, 51):
        rows[number][0] = shutil.copy(rows[number][0], tmp_path / f"{number}.wav")
    (tmp_path / "list.csv").write_text("uri,clip_id\n" + "".join(f"{uri},{name}\n" for uri, name in rows))
    many = dataclasses.replace(args, source="manifest", input=str(tmp_path / "list.csv"), labels_from_folders=False)
    whole = main(dataclasses.replace(many, output=str(tmp_path / "whole")))
    gates = [Gate(tmp_path / "21.wav"), Gate(tmp_path / "51.wav")]
    done = []
    job = threading.Thread(target=lambda: done.append(main(many)))
    job.start()
    workers = {gate.wait(job.is_alive) for gate in gates}
    for gate in gates:
        gate.open()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    job.join()
    assert done[0].num_clips == 80 and done[0].content_hash == whole.content_hash
    assert (done[0].statistics.std == whole.statistics.std).all()
    assert sum(verify_dataset(many.output)) == 80


def test_a_job_killed_before_its_plan_stood_starts_anew(args):
    plan = Path(args.output, "_plan")
    plan.mkdir(parents=True)
    (plan / "manifest.parquet.77.tmp").write_bytes(b"half")
    assert main(args).num_clips == 20


def test_recordings_are_cut(args, capsys):
    cut = main(dataclasses.replace(args, segment=0.5, segment_last="drop"))
    starts = cut.read_columns(["clip_id", "start_s", "duration_s"]).to_pylist()
    assert {r["duration_s"] for r in starts} == {0.5} and starts[1]["clip_id"].endswith("#00001")
    assert "20 recordings cut into" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a finished dataset made from other input or settings"):
        main(args)


def test_datasets_are_merged(args, whole, sounds, tmp_path, capsys, monkeypatch):
    parts = []
    for kind in ("noise", "tone"):
        part = dataclasses.replace(
            args, input=str(sounds / kind), output=str(tmp_path / kind), labels_from_folders=False
        )
        parts.append(main(part).path)
    monkeypatch.setattr("pipelines.jobs.preprocess.save_report", save_report)
    merged = str(tmp_path / "merged")
    preprocess.main(parse_args(["--merge", *parts, "--output", merged]))
    assert "20 clips ok, 0 bad" in capsys.readouterr().out
    assert sum(verify_dataset(merged)) == 20 and Path(merged, "report/report.md").exists()
    # other ids ("noise/..."), the same sound
    assert (open_dataset(merged).statistics.std == whole.statistics.std).all()
