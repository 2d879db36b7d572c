"""Clips to a part of embeddings: the same vectors as the encoder's own methods, whatever they are batched with."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.properties import examples
from helpers.training_state import MODEL
from hypothesis import given
from hypothesis import strategies as st

from ajepa import storage
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.audio.statistics import Statistics
from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference import part_writer
from ajepa.inference.embedder import Embedder, EmbedSettings
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.part_writer import part_path
from ajepa.inference.pretrained import random_encoder
from ajepa.shards.row_groups import RowGroups
from ajepa.shards.schema import BAD, OK

STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)
LEVELS = ("clip", "frame", "patch")


def encoder() -> AudioEncoder:
    return random_encoder(MODEL, 0, FrontEndConfig(clip_frames=256), STATISTICS)


ENCODER = encoder()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))).astype(np.float32)


@pytest.fixture
def files(tmp_path, write_wav):
    """Five clips of 0.1 to 4 s, one of them text, as a manifest; and their waveforms by clip id."""
    waves = {f"clip{i}": noise(s, i) for i, s in enumerate((2.0, 0.1, 4.0, 1.28, 0.7))}
    rows = [
        {"clip_id": name, "uri": write_wav(tmp_path / f"{name}.wav", wave, subtype="FLOAT")}
        for name, wave in waves.items()
    ]
    (tmp_path / "text.wav").write_text("not sound")
    rows.insert(2, {"clip_id": "text", "uri": str(tmp_path / "text.wav")})
    defaults = {"start_s": 0.0, "duration_s": None, "split": "train", "fold": 3, "labels": [1]}
    for status in (OK, BAD):
        storage.make_folder(str(tmp_path / "out" / status))
    return pa.Table.from_pylist([defaults | row for row in rows], MANIFEST_SCHEMA), waves, str(tmp_path / "out")


def write(files, level: str, **options) -> pa.Table:
    clips, _, output = files
    Embedder(ENCODER, EmbedSettings(level=level), **options).write_files(clips, 0, output)
    return pq.read_table(part_path(output, OK, 0), partitioning=None)


def test_clip_embeddings_are_those_of_the_encoder(files):
    rows = write(files, "clip").to_pylist()
    assert [r["clip_id"] for r in rows] == ["clip0", "clip1", "clip2", "clip3", "clip4"]
    for row in rows:
        expected = ENCODER.clip_embeddings(files[1][row["clip_id"]], 16_000)[0]
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)


def test_frame_embeddings_come_with_the_encoder_s_times(files):
    for row in write(files, "frame").to_pylist():
        expected = ENCODER.frame_embeddings(files[1][row["clip_id"]], 16_000)
        np.testing.assert_allclose(row["embedding"], expected.embeddings[0], atol=1e-5)
        np.testing.assert_allclose(row["time_ms"], expected.timestamps, atol=1e-3)


def test_patch_embeddings_come_with_their_grid(files):
    for row in write(files, "patch").to_pylist():
        expected = ENCODER.patch_embeddings(files[1][row["clip_id"]], 16_000)
        assert tuple(row["grid"]) == expected.grid
        np.testing.assert_allclose(row["embedding"], expected.embeddings[0], atol=1e-5)


def test_a_bad_file_is_a_bad_row_with_its_reason(files):
    clips, _, output = files
    result = Embedder(ENCODER, EmbedSettings()).write_files(clips, 0, output)
    (bad,) = pq.read_table(part_path(output, BAD, 0), partitioning=None).to_pylist()
    assert (result.ok, result.errors) == (5, {"decode": 1})
    assert bad["clip_id"] == "text" and bad["error"].startswith("decode: ")


def test_a_clip_shorter_than_one_window_has_silence_behind_it(files, tmp_path, write_wav):
    clips, _, output = files
    click = noise(0.01)
    both = [click, np.concatenate([click, np.zeros(400 - len(click))])]
    uris = [write_wav(tmp_path / f"short{i}.wav", wave, subtype="FLOAT") for i, wave in enumerate(both)]
    short = clips.slice(0, 2).set_column(1, "uri", pa.array(uris))
    Embedder(ENCODER, EmbedSettings()).write_files(short, 0, output)
    one, other = pq.read_table(part_path(output, OK, 0), partitioning=None).to_pylist()
    assert one["duration_s"] == 0.01 and one["embedding"] == other["embedding"]


def test_an_embedding_that_is_not_finite_is_a_bad_row(files):
    clips, _, output = files
    broken = encoder()
    with torch.no_grad():
        broken.encoder.norm.weight.fill_(torch.nan)
    result = Embedder(broken, EmbedSettings()).write_files(clips, 0, output)
    assert (result.ok, result.errors["encoder"]) == (0, 5)


def test_a_part_is_a_pure_function_of_its_clips(files):
    clips, _, output = files
    contents = set()
    for threads in (1, 3):
        Embedder(ENCODER, EmbedSettings(level="frame"), threads=threads).write_files(clips, 0, output)
        with storage.open_input(part_path(output, OK, 0)) as stream:
            contents.add(stream.read())
    assert len(contents) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_small_row_groups_change_nothing(files, level, monkeypatch):
    whole = write(files, level)
    monkeypatch.setattr(part_writer, "GROUP_FRAMES", 1)  # a clip a row group
    monkeypatch.setattr(part_writer, "AHEAD_FRAMES", 1)
    apart = write(files, level)
    assert pq.ParquetFile(part_path(files[2], OK, 0)).num_row_groups == 5
    for a, b in zip(whole.to_pylist(), apart.to_pylist(), strict=True):
        np.testing.assert_allclose(a.pop("embedding"), b.pop("embedding"), atol=1e-5)
        assert a == b


@examples(20)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.sampled_from(LEVELS), st.sampled_from([None, 1, 3]))
def test_an_embedding_does_not_depend_on_what_it_is_batched_with(frames, level, batch_size):
    generator = torch.Generator().manual_seed(sum(frames))
    log_mels = [torch.randn(128, n, generator=generator) - 4 for n in frames]
    together = Embedder(ENCODER, EmbedSettings(level=level), batch_size=batch_size).compute(log_mels)
    alone = Embedder(ENCODER, EmbedSettings(level=level))
    for log_mel, found in zip(log_mels, together, strict=True):
        np.testing.assert_allclose(found, alone.compute([log_mel])[0], atol=1e-5)


def test_a_clip_longer_than_the_limit_is_cut_and_counted(files):
    clips, waves, output = files
    result = Embedder(ENCODER, EmbedSettings(max_seconds=3.0)).write_files(clips, 0, output)
    row = pq.read_table(part_path(output, OK, 0), partitioning=None).to_pylist()[2]
    assert result.cut == 1 and row["duration_s"] == 3.0
    expected = ENCODER.clip_embeddings(waves["clip2"][:48_000], 16_000)[0]
    np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)


def test_layers_are_concatenated(files):
    clips, _, output = files
    embedder = Embedder(ENCODER, EmbedSettings(layers=(1, 2), pooling="mean+std"))
    embedder.write_files(clips, 0, output)
    assert embedder.dimension == 2 * 2 * ENCODER.width
    assert pd.read_parquet(part_path(output, OK, 0)).embedding[0].shape == (embedder.dimension,)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"--layers: layers \[99\]: this encoder has the layers 1 to"):
        Embedder(ENCODER, EmbedSettings(layers=(99,)))


def test_shards_give_the_vectors_of_their_files(small_dataset, tmp_path):
    groups = RowGroups(small_dataset)
    for status in (OK, BAD):
        storage.make_folder(str(tmp_path / status))
    embedder = Embedder(ENCODER, EmbedSettings())
    results = [embedder.write_shard(groups, shard, str(tmp_path)) for shard in (0, 1)]
    assert [r.ok for r in results] == [20, 20]
    shards = pq.read_table(part_path(str(tmp_path), OK, 1), partitioning=None)
    files = Embedder(ENCODER, EmbedSettings(max_seconds=2.5599375))  # what a shard holds of a clip
    files.write_files(shards.select(MANIFEST_SCHEMA.names), 7, str(tmp_path))
    again = pq.read_table(part_path(str(tmp_path), OK, 7), partitioning=None)
    for a, b in zip(shards.to_pylist(), again.to_pylist(), strict=True):
        assert a["clip_id"] == b["clip_id"] and a["labels"] == b["labels"]
        np.testing.assert_allclose(a["embedding"], b["embedding"], atol=1e-5)
