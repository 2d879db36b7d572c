"""What goes wrong in the middle of an embed job, and buckets: it ends the same, or stops clearly and goes on."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.faults import PATIENCE, ROOT, Gate
from helpers.training_state import save_run

from ajepa import storage
from ajepa.errors import UserError
from ajepa.evaluation.embeddings import open_embeddings
from pipelines.embed import EmbedArgs
from pipelines.jobs.embed import main

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, small_dataset) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "run"
    save_run(folder, small_dataset, 1)
    return str(folder)


@pytest.fixture
def args(sounds, encoder, tmp_path, mlflow_uri):
    """400 clips in 50 parts; gate.wav is in the 26th."""
    rows = [[path, f"{i:02d} {path.stem}"] for i in range(20) for path in sorted(sounds.rglob("*.wav"))]
    rows[205][0] = shutil.copy(rows[205][0], tmp_path / "gate.wav")
    (tmp_path / "list.csv").write_text("uri,clip_id\n" + "".join(f"{uri},{name}\n" for uri, name in rows))
    return EmbedArgs(
        encoder=encoder, source="manifest", input=str(tmp_path / "list.csv"), output=str(tmp_path / "emb"),
        level="patch", clips_per_part=8, mlflow_uri=mlflow_uri,
    )  # fmt: skip


def rows(output: str) -> list[dict]:
    parts = open_embeddings(output).parts
    return [row for p in parts for row in pq.read_table(f"{output}/{p.name}", partitioning=None).to_pylist()]


def test_a_killed_actor_loses_nothing(ray_session, args, tmp_path):
    main(dataclasses.replace(args, output=str(tmp_path / "whole")))
    gate, done = Gate(tmp_path / "gate.wav"), []
    job = threading.Thread(target=lambda: done.append(main(args)))
    job.start()
    actor = gate.wait(job.is_alive)
    gate.open()
    os.kill(actor, signal.SIGKILL)
    job.join()
    assert done[0].num_clips == 400
    assert rows(args.output) == rows(str(tmp_path / "whole"))


@pytest.mark.disk("2m", "100m")
def test_a_full_disk_stops_the_job_clearly_and_the_same_command_goes_on(ray_session, args, small_disk):
    folder, enlarge = small_disk
    small = dataclasses.replace(args, output=str(folder / "emb"), num_workers=1)
    with pytest.raises(UserError, match=r"stopped: .*No space left on device.*run the same command again"):
        main(small)
    done = {p: p.stat().st_mtime_ns for p in folder.glob("emb/status=ok/*.parquet")}
    assert 1 <= len(done) < 50
    enlarge()
    assert main(small).num_clips == 400
    assert not list(folder.rglob("*.tmp"))  # an actor that is stopped in the middle of a part leaves one until then
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    main(args)
    assert rows(small.output) == rows(args.output)


def test_from_a_bucket_to_a_bucket(here, s3, sounds, encoder, tmp_path, ray_session):
    """Its own Ray: the workers of the session's do not know the server."""
    for folder, prefix in ((sounds / "tone", "in"), (Path(encoder), "run")):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            with storage.atomic_output(f"s3://sounds/{prefix}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())
    command = [
        sys.executable, "pipelines/embed.py", "--encoder", "s3://sounds/run", "--input", "s3://sounds/in", "--output",
        "s3://sounds/emb", "--mlflow-uri", f"sqlite:///{tmp_path}/mlflow.db", "--log-model",
    ]  # fmt: skip
    environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "PYTHONPATH": str(ROOT)}

    def said(*argv: str) -> str:
        done = subprocess.run(
            argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "10 clips ok, 0 bad" in said(*command)
    assert "nothing to do" in said(*command)
    assert open_embeddings("s3://sounds/emb").num_clips == 10
    query = ["--neighbours", "s3://sounds/in/tone 2.wav", "--output", "s3://sounds/emb", "--top", "1"]
    assert "+1.0000  tone 2.wav  s3://sounds/in/tone 2.wav" in said(*command[:2], *query)
