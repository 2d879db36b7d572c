"""Sound in Parquet files, tar archives and HDF5 files through the jobs: made, embedded, killed and resumed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.containers import AUDIO, FRONT_END, Sound, audio, flac, loose, parquet, sounds, tar
from helpers.faults import PATH, ROOT, Gate

from ajepa.inference.embeddings import open_embeddings
from ajepa.shards.dataset import open_dataset
from pipelines.embed import EmbedArgs
from pipelines.jobs import embed, preprocess
from pipelines.preprocess import PreprocessArgs

pytestmark = pytest.mark.ray
COUNT = 24


@pytest.fixture(scope="module")
def clips():
    return sounds(COUNT)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Without the end report, whose pictures take longer than a small job."""
    monkeypatch.setattr("pipelines.jobs.preprocess.save_report", lambda *_: None)


def options(source: str, path: str, output: Path, mlflow_uri: str, **more) -> PreprocessArgs:
    more = {"clips_per_shard": 4} | more
    return PreprocessArgs(
        source=source, input=path, output=str(output), mlflow_uri=mlflow_uri, front_end=FRONT_END, **more
    )


@pytest.fixture(scope="module")
def wanted(ray_session, clips, tmp_path_factory, new_mlflow):
    """The content hash of the clips as loose files, and their embeddings."""
    folder = tmp_path_factory.mktemp("loose")
    path = loose(folder / "in", clips)
    return preprocess.main(options("manifest", path, folder / "shards", new_mlflow(folder))).content_hash


def make(kind: str, clips, folder: Path) -> str:
    """The clips in a container, in two files."""
    for k in range(2):
        part = clips[k * COUNT // 2 : (k + 1) * COUNT // 2]
        if kind == "parquet":
            columns = {"id": [c.id for c in part], "audio": audio(part), "labels": [list(c.labels) for c in part]}
            parquet(folder / f"{k}.parquet", columns, group=5)
        else:
            files = [(c.id, "flac", c.data) for c in part]
            files += [(c.id, "json", json.dumps({"label": c.labels[0]}).encode()) for c in part]
            tar(folder / f"{k}.tar", [(f"{name}.{kind}", data) for name, kind, data in sorted(files)])
    return str(folder)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize("store", [False, True], ids=["local", "s3"])
def test_from_source_to_embeddings(kind, store, clips, wanted, encoder, tmp_path, mlflow_uri, s3, capsys):
    where = make(kind, clips, tmp_path / "in")
    if store:
        for path in sorted((tmp_path / "in").iterdir()):
            s3.Object(f"{tmp_path.name}/{path.name}").put(Body=path.read_bytes())
        where = f"s3://sounds/{tmp_path.name}"
    args = options(kind, where, tmp_path / "shards", mlflow_uri)
    dataset = preprocess.main(args)
    assert dataset.content_hash == wanted
    preprocess.verify(args.output)
    assert f"intact: {COUNT} clips" in capsys.readouterr().out
    here, there = (
        {
            row["clip_id"]: row["embedding"]
            for row in vectors(embed_args(encoder, source, path, tmp_path / f"emb-{source}", mlflow_uri))
        }
        for source, path in ((kind, where), ("shards", args.output))
    )
    np.testing.assert_allclose(
        [here[c.id] for c in clips], [there[c.id] for c in clips], atol=2e-3
    )  # float16 in shards


def embed_args(encoder, source, path, output, mlflow_uri) -> EmbedArgs:
    return EmbedArgs(
        encoder=encoder, input=path, output=str(output), source=source, mlflow_uri=mlflow_uri, num_workers=1,
        clips_per_part=None if source == "shards" else 6,
    )  # fmt: skip


def vectors(args: EmbedArgs) -> list[dict]:
    embed.main(args)
    folder = open_embeddings(args.output)
    rows = [r for p in folder.parts for r in pq.read_table(Path(folder.path, p.name), partitioning=None).to_pylist()]
    assert folder.num_clips == COUNT and np.isfinite([r["embedding"] for r in rows]).all()
    return rows


def test_hdf5_through_the_jobs(ray_session, encoder, tmp_path, mlflow_uri):
    waveform = np.random.default_rng(0).uniform(-0.3, 0.3, (COUNT, 16_000)).astype(np.float32)
    with h5py.File(tmp_path / "eval.h5", "w") as file:
        file.create_dataset("audio_name", data=np.array([f"Y{i:011d}.wav" for i in range(COUNT)], "S20"))
        file.create_dataset("waveform", data=waveform)
        file.create_dataset("target", data=np.eye(COUNT, 3, dtype=bool))
        file.attrs["sample_rate"] = 32_000
    args = options("hdf5", str(tmp_path / "eval.h5"), tmp_path / "shards", mlflow_uri)
    dataset = preprocess.main(args)
    assert (dataset.num_clips, dataset.label_names) == (COUNT, ("0", "1", "2"))
    preprocess.verify(args.output)
    vectors(embed_args(encoder, "hdf5", args.input, tmp_path / "emb", mlflow_uri))


def command(args: PreprocessArgs) -> list[str]:
    return [
        sys.executable, "pipelines/preprocess.py", "--source", args.source, "--input", args.input, "--output",
        args.output, "--mlflow-uri", str(args.mlflow_uri), "--clip-frames", str(FRONT_END.clip_frames),
        "--clips-per-shard", str(args.clips_per_shard), "--num-workers", "1",
    ]  # fmt: skip


def start(ray_session, args: PreprocessArgs) -> subprocess.Popen:
    address = ray_session.get_runtime_context().gcs_address
    return subprocess.Popen(command(args), cwd=ROOT, env=os.environ | PATH | {"RAY_ADDRESS": address})


@pytest.mark.process
@pytest.mark.cluster
def test_killed_in_a_row_group(ray_session, clips, wanted, tmp_path, mlflow_uri):
    """Inside the third row group, at a row whose sound is a file that nobody writes."""
    (tmp_path / "in").mkdir()
    gate_at = 12
    (tmp_path / "in/gate.flac").write_bytes(clips[gate_at].data)
    sound = audio(clips).to_pylist()
    sound[gate_at] = {"bytes": None, "path": "gate.flac"}
    labels = [list(c.labels) for c in clips]
    columns = {"id": [c.id for c in clips], "audio": pa.array(sound, AUDIO), "labels": labels}
    parquet(tmp_path / "in/0.parquet", columns, group=5)
    args = options("parquet", str(tmp_path / "in/0.parquet"), tmp_path / "shards", mlflow_uri, num_workers=1)
    gate = Gate(tmp_path / "in/gate.flac")
    with start(ray_session, args) as job:
        gate.wait(lambda: job.poll() is None)
        gate.open()
        job.kill()
    gate.wait_until_left()
    done = {p: p.stat().st_mtime_ns for p in Path(args.output).glob("status=ok/*.parquet")}
    assert 0 < len(done) < 5
    resumed = preprocess.main(args)
    assert resumed.content_hash == wanted
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())


@pytest.mark.process
@pytest.mark.cluster
def test_killed_in_an_archive(ray_session, tmp_path, mlflow_uri):
    clips = [Sound(f"{i:03d}", flac(i, 8.0, 48_000), ("a",)) for i in range(80)]
    path = tar(tmp_path / "in/0.tar", [(f"{c.id}.flac", c.data) for c in clips])
    args = options("webdataset", path, tmp_path / "shards", mlflow_uri, num_workers=1)
    with start(ray_session, args) as job:
        while job.poll() is None and len(list(Path(args.output).glob("status=ok/*.parquet"))) < 2:
            time.sleep(0.01)
        job.kill()
    time.sleep(1)  # its tasks end with it
    done = {p: p.stat().st_mtime_ns for p in Path(args.output).glob("status=ok/*.parquet")}
    assert 0 < len(done) < 20
    resumed = preprocess.main(args)
    whole = preprocess.main(options("webdataset", path, tmp_path / "whole", mlflow_uri))
    assert resumed.content_hash == whole.content_hash and resumed.num_clips == 80
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert open_dataset(args.output).statistics.std.tolist() == whole.statistics.std.tolist()
