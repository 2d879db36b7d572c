"""The map of an embedding folder: places, clusters and neighbours, made once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.embedded import embed

from ajepa import storage
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError
from ajepa.inference.embeddings import EMBEDDINGS_JSON, open_embeddings
from ajepa.inference.neighbours import nearest, nearest_of_all
from pipelines.explorer import embedding_map
from pipelines.explorer.embedding_map import MapSettings, open_map
from pipelines.explorer.layout import FEW, clusters, places


@pytest.fixture(scope="module")
def embeddings(sounds, tmp_path_factory):
    """20 clips, embedded by `nano`. Read only."""
    return embed(load_manifest("folder", str(sounds), labels_from_folders=True), tmp_path_factory.mktemp("map") / "emb")


@pytest.fixture
def copy(embeddings, tmp_path):
    return open_embeddings(str(shutil.copytree(embeddings.path, tmp_path / "emb")))


def blobs(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of directions, the first the largest."""
    rng = np.random.default_rng(seed)
    kinds = np.array([0] * (n // 2) + [1] * (n // 3) + [2] * (n - n // 2 - n // 3))
    return (10 * np.eye(8)[kinds] + rng.standard_normal((n, 8))).astype(np.float32), kinds


def test_what_is_alike_lies_together():
    vectors, kinds = blobs()
    where = places(vectors, *nearest_of_all(vectors, 10))
    middles = np.stack([where[kinds == kind].mean(axis=0) for kind in range(3)])
    nearest_middle = np.linalg.norm(where[:, None] - middles, axis=2).argmin(axis=1)
    assert where.shape == (60, 2) and (nearest_middle == kinds).all()


def test_a_seed_makes_the_same_map():
    vectors, _ = blobs()
    known = nearest_of_all(vectors, 10)
    first, second = places(vectors, *known, seed=1), places(vectors, *known, seed=1)
    assert (first == second).all() and not (first == places(vectors, *known, seed=2)).all()


@pytest.mark.parametrize("n", [1, 2, 3, FEW - 1, FEW, FEW + 1])
def test_few_clips_have_places_and_clusters(n):
    vectors = np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)
    where = places(vectors, *nearest_of_all(vectors, 15))
    assert where.shape == (n, 2) and np.isfinite(where).all()
    assert set(clusters(vectors, 12)) <= set(range(min(12, n)))


def test_clips_that_are_all_the_same_have_places_and_one_cluster():
    vectors = np.ones((30, 4), np.float32)
    assert np.isfinite(places(vectors, *nearest_of_all(vectors, 5))).all()
    assert set(clusters(vectors, 12)) == {0}


def test_clusters_are_numbered_by_size():
    vectors, kinds = blobs()
    assert (clusters(vectors, 3) == kinds).all()


def test_a_map_has_a_row_a_clip_in_the_order_of_the_parts(copy):
    table = open_map(copy, f"{copy.path}/map", MapSettings(neighbours=4, clusters=2))
    ids = [clip for group in copy.row_groups(["clip_id"]) for clip in group["clip_id"].to_pylist()]
    assert table["clip_id"].to_pylist() == ids
    assert set(table["label"].to_pylist()) == {"noise", "tone"}
    assert set(table["cluster"].to_pylist()) == {"cluster 01", "cluster 02"}


def test_neighbours_name_rows_and_are_those_of_a_query(copy):
    table = open_map(copy, f"{copy.path}/map", MapSettings(neighbours=4))
    vectors = np.concatenate([np.stack(g["embedding"].to_numpy()) for g in copy.row_groups(["embedding"])])
    found = nearest(copy, vectors[3], 5)
    known = table["neighbors"][3].as_py()
    assert [table["clip_id"][i].as_py() for i in known["ids"]] == [n.clip_id for n in found[1:]]
    np.testing.assert_allclose(known["distances"], [1 - n.similarity for n in found[1:]], atol=1e-5)


def test_a_map_is_made_once_and_leaves_the_embeddings_alone(copy, monkeypatch):
    before = {p: p.read_bytes() for p in Path(copy.path).rglob("*") if p.is_file()}
    made = open_map(copy, f"{copy.path}/map", MapSettings())
    monkeypatch.setattr(embedding_map, "make_map", None)
    assert open_map(copy, f"{copy.path}/map", MapSettings()) == made
    assert all(path.read_bytes() == content for path, content in before.items())
    assert open_embeddings(copy.path) == copy


def test_other_settings_or_other_embeddings_make_another_map(copy):
    folder = f"{copy.path}/map"
    first = open_map(copy, folder, MapSettings(neighbours=4))
    assert len(open_map(copy, folder, MapSettings(neighbours=5))["neighbors"][0].as_py()["ids"]) == 5
    storage.write_text(storage.join(copy.path, EMBEDDINGS_JSON), json.dumps(copy.info | {"label_names": ["a", "b"]}))
    again = open_map(open_embeddings(copy.path), folder, MapSettings(neighbours=4))
    assert set(again["label"].to_pylist()) == {"a", "b"} and first["x"] == again["x"]


@pytest.mark.parametrize("name", ["map.json", "map.parquet"])
def test_a_map_that_was_damaged_or_cut_is_made_again(copy, name):
    made = open_map(copy, f"{copy.path}/map", MapSettings())
    Path(copy.path, "map", name).write_bytes(b"{")
    assert open_map(copy, f"{copy.path}/map", MapSettings()) == made


def test_frames_have_no_map(copy):
    storage.write_text(storage.join(copy.path, EMBEDDINGS_JSON), json.dumps(copy.info | {"level": "frame"}))
    with pytest.raises(UserError, match=r"holds frame embeddings.*embed the clips with --level clip"):
        open_map(open_embeddings(copy.path), f"{copy.path}/map", MapSettings())
