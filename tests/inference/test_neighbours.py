"""Embedding folders and the clips nearest to a query in them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from ajepa import storage
from ajepa.errors import UserError
from ajepa.inference import neighbours
from ajepa.inference.embedder import embedding_schema
from ajepa.inference.embeddings import EMBEDDINGS_JSON, Embeddings, finish_embeddings, open_embeddings
from ajepa.inference.neighbours import cosine, nearest, nearest_of_all
from ajepa.inference.part_writer import part_path
from ajepa.shards.schema import BAD, OK

ABOUT = {"level": "clip", "dimension": 3, "encoder": {"digest": "d"}, "label_names": ["dog", "rain"]}


def build(root, vectors: np.ndarray, per_part: int = 4, level: str = "clip", expected: int | None = None) -> Embeddings:
    output = str(root)
    for status in (OK, BAD):
        storage.make_folder(storage.join(output, status))
    rows = [
        {"clip_id": f"c{i:03d}", "uri": f"/s/{i}.wav", "start_s": 0.0, "duration_s": 1.0, "split": "", "fold": -1,
         "labels": [i % 2], "embedding": v.tolist()}
        for i, v in enumerate(vectors)
    ]  # fmt: skip
    for index, start in enumerate(range(0, len(rows), per_part)):
        table = pa.Table.from_pylist(rows[start : start + per_part], embedding_schema("clip", 3))
        pq.write_table(table, part_path(output, OK, index), row_group_size=3)
    return finish_embeddings(output, expected or len(rows), ABOUT | {"level": level})


@pytest.fixture
def folder(tmp_path):
    return build(tmp_path / "emb", np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32))


def test_the_nearest_are_those_of_a_full_sort(folder):
    vectors = np.concatenate([np.stack(g["embedding"].to_numpy()) for g in folder.row_groups(["embedding"])])
    query = np.array([1.0, -2.0, 0.5])
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    found = nearest(folder, query, 4)
    assert [n.clip_id for n in found] == [f"c{i:03d}" for i in np.argsort(-similarity)[:4]]
    np.testing.assert_allclose([n.similarity for n in found], np.sort(similarity)[::-1][:4])
    assert found[0].labels == (("dog", "rain")[int(found[0].clip_id[1:]) % 2],)


@examples(20)
@given(at_once=st.integers(1, 12), top=st.integers(1, 12))
def test_how_many_are_compared_at_a_time_changes_nothing(tmp_path_factory, at_once, top):
    folder = build(tmp_path_factory.mktemp("emb"), np.tile(np.eye(3, dtype=np.float32), (4, 1)))  # with ties
    before, neighbours.AT_ONCE = neighbours.AT_ONCE, at_once
    try:
        found = [n.clip_id for n in nearest(folder, np.array([1.0, 0.5, 0.0]), top)]
    finally:
        neighbours.AT_ONCE = before
    order = [f"c{i:03d}" for first in range(3) for i in range(first, 12, 3)]
    assert found == order[:top]


def test_a_zero_vector_is_like_nothing():
    assert cosine(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([1.0, 0.0])).tolist() == [0.0, 1.0]
    assert cosine(np.array([[2.0, 0.0]]), np.zeros(2)).tolist() == [0.0]


def test_neighbours_of_frames_are_refused(tmp_path):
    folder = build(tmp_path / "emb", np.eye(3, dtype=np.float32), level="frame")
    with pytest.raises(UserError, match="holds frame embeddings: neighbours need --level clip"):
        nearest(folder, np.ones(3), 1)


def test_a_query_of_another_dimension_is_refused(folder):
    with pytest.raises(UserError, match="the embeddings have 3"):
        nearest(folder, np.ones(4), 1)


def test_a_folder_without_its_last_file_is_unfinished(folder):
    storage.delete(storage.join(folder.path, EMBEDDINGS_JSON))
    with pytest.raises(UserError, match=r"or one that is not finished.*run the same embed command again"):
        open_embeddings(folder.path)


def test_embeddings_of_another_version_are_refused(folder):
    where = storage.join(folder.path, EMBEDDINGS_JSON)
    storage.write_text(where, json.dumps(folder.info | {"format_version": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1"):
        open_embeddings(folder.path)


def test_damaged_facts_are_named(folder):
    storage.write_text(storage.join(folder.path, EMBEDDINGS_JSON), "{")
    with pytest.raises(UserError, match="is damaged"):
        open_embeddings(folder.path)


def test_a_missing_part_is_named(folder):
    storage.delete(part_path(folder.path, OK, 1))
    with pytest.raises(UserError, match=r"part-00001\.parquet' cannot be read"):
        nearest(folder, np.ones(3), 1)


def test_a_part_of_other_rows_is_named(folder):
    path = part_path(folder.path, OK, 1)
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)
    with pytest.raises(UserError, match="has 3 rows, not 4"):
        nearest(folder, np.ones(3), 1)


def test_clips_that_are_not_there_are_noticed(tmp_path):
    with pytest.raises(UserError, match="3 ok and 0 bad rows, 3 distinct ids, for 5 clips"):
        build(tmp_path / "emb", np.eye(3, dtype=np.float32), expected=5)


@examples(30)
@given(n=st.integers(1, 40), count=st.integers(1, 9), rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_the_neighbours_of_all_are_those_of_each(n, count, rows, columns):
    vectors = np.random.default_rng(n).standard_normal((n, 5)).astype(np.float32)
    before, neighbours.TILE = neighbours.TILE, (rows, columns)
    try:
        numbers, cosines = nearest_of_all(vectors, count)
    finally:
        neighbours.TILE = before
    similarity = np.stack([cosine(vectors, v) for v in vectors])
    np.fill_diagonal(similarity, -np.inf)
    np.testing.assert_array_equal(numbers, np.argsort(-similarity, axis=1)[:, : min(count, n - 1)])
    np.testing.assert_allclose(cosines, np.take_along_axis(similarity, numbers, 1), atol=1e-6)
