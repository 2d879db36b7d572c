"""What goes wrong in the middle of an embed job, and buckets: it ends the same, or stops clearly and goes on."""

import dataclasses
import os
import shutil
import signal
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.faults import Gate

from ajepa import storage
from ajepa.errors import UserError
from ajepa.inference.embeddings import open_embeddings
from pipelines import embed
from pipelines.embed import EmbedArgs
from pipelines.jobs.embed import main

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def whole(ray_session, sounds, encoder, tmp_path_factory, new_mlflow):
    """The options of a job that nothing happened to: 80 clips in 10 parts; gate.wav is in the sixth."""
    folder = tmp_path_factory.mktemp("whole")
    rows = [[path, f"{i:02d} {path.stem}"] for i in range(4) for path in sorted(sounds.rglob("*.wav"))]
    rows[45][0] = shutil.copy(rows[45][0], folder / "gate.wav")
    (folder / "list.csv").write_text("uri,clip_id\n" + "".join(f"{uri},{name}\n" for uri, name in rows))
    args = EmbedArgs(
        encoder=encoder, source="manifest", input=str(folder / "list.csv"), output=str(folder / "emb"),
        level="patch", clips_per_part=8, mlflow_uri=new_mlflow(folder),
    )  # fmt: skip
    main(args)
    return args


def rows(output: str) -> list[dict]:
    parts = open_embeddings(output).parts
    return [row for p in parts for row in pq.read_table(f"{output}/{p.name}", partitioning=None).to_pylist()]


@pytest.mark.cluster
def test_a_killed_actor_loses_nothing(ray_session, whole, tmp_path):
    args, done = dataclasses.replace(whole, output=str(tmp_path / "emb")), []
    gate = Gate(Path(whole.input).with_name("gate.wav"))
    job = threading.Thread(target=lambda: done.append(main(args)))
    job.start()
    actor = gate.wait(job.is_alive)
    gate.open()
    os.kill(actor, signal.SIGKILL)
    job.join()
    assert done[0].num_clips == 80
    assert rows(args.output) == rows(whole.output)


@pytest.mark.disk("400k", "100m")
def test_a_full_disk_stops_the_job_clearly_and_the_same_command_goes_on(ray_session, whole, small_disk):
    folder, enlarge = small_disk
    small = dataclasses.replace(whole, output=str(folder / "emb"), num_workers=1)
    with pytest.raises(UserError, match=r"stopped: .*No space left on device.*run the same command again"):
        main(small)
    done = {p: p.stat().st_mtime_ns for p in folder.glob("emb/status=ok/*.parquet")}
    assert 1 <= len(done) < 10
    enlarge()
    assert main(small).num_clips == 80
    assert not list(folder.rglob("*.tmp"))  # an actor that is stopped in the middle of a part leaves one until then
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert rows(small.output) == rows(whole.output)


def test_from_a_bucket_to_a_bucket(ray_session, s3, sounds, encoder, mlflow_uri, capsys):
    for folder, prefix in ((sounds / "tone", "in"), (Path(encoder), "run")):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            with storage.atomic_output(f"s3://sounds/{prefix}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())

    def said(*argv: str) -> str:
        embed.main(embed.parse_args(argv))
        return capsys.readouterr().out

    job = [
        "--encoder", "s3://sounds/run", "--input", "s3://sounds/in", "--output", "s3://sounds/emb", "--mlflow-uri",
        mlflow_uri, "--log-model",
    ]  # fmt: skip
    assert "10 clips ok, 0 bad" in said(*job)
    assert "nothing to do" in said(*job)
    assert open_embeddings("s3://sounds/emb").num_clips == 10
    query = ["--neighbours", "s3://sounds/in/tone 2.wav", "--output", "s3://sounds/emb", "--top", "1"]
    assert "+1.0000  tone 2.wav  s3://sounds/in/tone 2.wav" in said(*query)
