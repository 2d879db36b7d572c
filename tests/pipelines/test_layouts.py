"""Every layout in which sound is held, through the jobs: source, shards, verification, embeddings. What comes of it is
what comes of the same clips as loose files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.containers import FRONT_END, Sound, loose, loose_dataset
from helpers.embedded import embed as make_embeddings
from helpers.layouts import LAYOUTS

from ajepa.audio.sources import load_manifest
from ajepa.inference.embeddings import Embeddings, open_embeddings
from ajepa.shards.dataset import ShardDataset
from pipelines.embed import EmbedArgs
from pipelines.jobs import embed, preprocess
from pipelines.preprocess import PreprocessArgs

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory, new_mlflow) -> str:
    """One database for all layouts."""
    return new_mlflow(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Without the end report, whose pictures take longer than a small job."""
    monkeypatch.setattr("pipelines.jobs.preprocess.save_report", lambda *_: None)


def described(dataset: ShardDataset) -> dict[str, tuple]:
    """What the dataset says of each clip; the digest is that of its log-mel."""
    rows = dataset.read_columns(["clip_id", "labels", "split", "fold", "num_frames", "digest"]).to_pylist()
    return {
        row["clip_id"]: ([dataset.label_names[i] for i in row["labels"]], row["split"], row["fold"], row["num_frames"],
                         row["digest"])
        for row in rows
    }  # fmt: skip


def embedded(folder: Embeddings) -> dict[str, tuple]:
    """What a folder of embeddings says of each clip."""
    rows = [r for p in folder.parts for r in pq.read_table(Path(folder.path, p.name), partitioning=None).to_pylist()]
    return {
        row["clip_id"]: ([folder.label_names[i] for i in row["labels"]], row["split"], row["fold"], row["embedding"])
        for row in rows
    }


def embed_loose(clips: list[Sound], encoder: str, folder: Path) -> dict[str, tuple]:
    """The embeddings of the clips as loose files, without Ray, each computed alone."""
    manifest = load_manifest("manifest", loose(folder / "in", clips))
    return embedded(make_embeddings(manifest, folder / "out", per_part=len(clips), encoder=encoder, batch_size=1))


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_source_to_shards_to_embeddings(name, ray_session, encoder, mlflow, tmp_path):
    made = LAYOUTS[name](tmp_path / "in")
    wanted = loose_dataset(tmp_path, made.clips)
    args = PreprocessArgs(
        source=made.source, input=made.path, output=str(tmp_path / "shards"), columns=made.columns,
        mlflow_uri=mlflow, front_end=FRONT_END, clips_per_shard=5,
    )  # fmt: skip
    dataset = preprocess.main(args)
    preprocess.verify(args.output)
    assert dataset.num_failed == 0 and described(dataset) == described(wanted)
    if made.label_names is None:
        assert dataset.content_hash == wanted.content_hash
    else:
        assert list(dataset.label_names) == made.label_names

    embed.main(EmbedArgs(
        encoder=encoder, source=made.source, input=made.path, output=str(tmp_path / "embeddings"), columns=made.columns,
        mlflow_uri=mlflow, num_workers=1, clips_per_part=12, batch_size=1,
    ))  # fmt: skip
    found = open_embeddings(str(tmp_path / "embeddings"))
    assert list(found.label_names) == list(dataset.label_names)
    vectors = embedded(found)
    assert vectors.keys() == {clip.id for clip in made.clips}
    assert vectors == embed_loose(made.clips, encoder, tmp_path / "loose embeddings")
