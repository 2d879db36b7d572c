"""One shard: the same bytes every time, every clip in it or in the rejected ones."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ajepa import storage
from ajepa.audio.decode import decode
from ajepa.audio.logmel import LogMel
from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.config import FrontEndConfig
from ajepa.shards import writer
from ajepa.shards.schema import BAD, BAD_SCHEMA, OK, OK_SCHEMA
from ajepa.shards.writer import shard_path, write_shard

CONFIG = FrontEndConfig(clip_frames=64)  # 0.64 s
CLIP = {"start_s": 0.0, "duration_s": None, "split": "train", "fold": 2, "labels": [1, 3]}


def noise(samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples)


def table(*clips):
    return pa.Table.from_pylist([CLIP | clip for clip in clips], MANIFEST_SCHEMA)


@pytest.fixture
def output(tmp_path):
    for status in (OK, BAD):
        (tmp_path / "out" / status).mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_wav):
    """Good, silent and bad clips, in this order."""
    root = tmp_path_factory.mktemp("mixed")
    with_nan = noise(8_000)
    with_nan[17] = np.nan
    (root / "zero.wav").write_bytes(b"")
    files = {
        "good": write_wav(root / "good.wav", noise(8_000)),
        "silence": write_wav(root / "silence.wav", np.zeros(8_000)),
        "nan": write_wav(root / "nan.wav", with_nan, subtype="FLOAT"),
        "zero": str(root / "zero.wav"),
        "two": write_wav(root / "two.wav", np.full(2, np.inf), subtype="FLOAT"),
        "gone": str(root / "gone.wav"),
    }
    return table(*({"clip_id": name, "uri": uri} for name, uri in files.items()))


def rows(output, status, index=0):
    return pq.ParquetFile(shard_path(str(output), status, index)).read().to_pylist()


def test_written_twice_it_has_the_same_bytes(tmp_path, mixed):
    contents = []
    for name in ("one", "two"):
        for status in (OK, BAD):
            storage.make_folder(str(tmp_path / name / status))
        write_shard(mixed, 3, str(tmp_path / name), CONFIG)
        contents.append([(tmp_path / name / status / "shard-00003.parquet").read_bytes() for status in (OK, BAD)])
    assert contents[0] == contents[1]


def test_written_over_itself_it_has_the_same_bytes(output, mixed):
    contents = []
    for _ in range(2):
        write_shard(mixed, 0, str(output), CONFIG)
        contents.append([(output / status / "shard-00000.parquet").read_bytes() for status in (OK, BAD)])
    assert contents[0] == contents[1]


def test_every_clip_is_there_once(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    ids = [row["clip_id"] for status in (OK, BAD) for row in rows(output, status)]
    assert sorted(ids) == sorted(mixed["clip_id"].to_pylist())


def test_silence_is_a_clip(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    assert [row["clip_id"] for row in rows(output, OK)] == ["good", "silence"]


def test_bad_clips_come_with_their_reason(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    reasons = {row["clip_id"]: row["error"] for row in rows(output, BAD)}
    assert reasons["nan"].startswith("waveform: 1 of 8000 samples are NaN")
    assert reasons["zero"] == "decode: empty file (0 bytes)"
    assert reasons["two"].startswith("waveform: 2 of 2 samples are NaN, infinite")
    assert reasons["gone"].startswith("read: ")


@pytest.mark.parametrize("samples", [1, 304, 399, 400])
def test_a_click_is_a_clip_with_silence_behind_it(output, write_wav, tmp_path, samples):
    """19 ms of a sample library are 304 samples."""
    wave = noise(samples)
    padded = np.concatenate([wave, np.zeros(400 - samples)])
    uris = [write_wav(tmp_path / f"{i}.wav", w, subtype="FLOAT") for i, w in enumerate((wave, padded))]
    write_shard(table(*({"clip_id": uri, "uri": uri} for uri in uris)), 0, str(output), CONFIG)
    short, full = rows(output, OK)
    assert short["duration_s"] == samples / 16_000 and full["duration_s"] == 400 / 16_000
    assert (short["log_mel"], short["num_frames"]) == (full["log_mel"], full["num_frames"])


def test_the_result_counts_what_was_written(output, mixed):
    result = write_shard(mixed, 7, str(output), CONFIG)
    assert (result.index, result.ok, result.bad) == (7, 2, 4)
    assert result.errors == {"waveform": 2, "decode": 1, "read": 1}


def test_columns_of_the_manifest_are_kept(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    for row in (rows(output, OK)[0], rows(output, BAD)[0]):
        assert {name: row[name] for name in ("start_s", "split", "fold", "labels")} == {
            name: CLIP[name] for name in ("start_s", "split", "fold", "labels")
        }


def test_the_duration_is_that_of_the_audio(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    assert rows(output, OK)[0]["duration_s"] == 0.5


def test_files_follow_the_schema(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    assert pq.read_schema(shard_path(str(output), OK, 0)).equals(OK_SCHEMA)
    assert pq.read_schema(shard_path(str(output), BAD, 0)).equals(BAD_SCHEMA)


def test_nothing_but_the_shards_is_left(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    assert [name for name, _ in storage.list_files(str(output))] == [
        f"{status}/shard-00000.parquet" for status in (BAD, OK)
    ]


def test_an_interrupted_shard_does_not_appear(output, mixed, monkeypatch):
    make_row = writer.make_row

    def interrupted(clip, *more):
        if clip["clip_id"] == "two":
            raise KeyboardInterrupt
        return make_row(clip, *more)

    monkeypatch.setattr(writer, "make_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shard(mixed, 0, str(output), CONFIG)
    assert storage.list_files(str(output)) == []


def test_rejects_of_an_earlier_attempt_are_removed(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    write_shard(mixed.slice(0, 2), 0, str(output), CONFIG)
    assert not (output / BAD / "shard-00000.parquet").exists()


def test_a_shard_of_bad_clips_has_an_empty_ok_file(output, mixed):
    write_shard(mixed.slice(2), 0, str(output), CONFIG)
    assert rows(output, OK) == []


def test_row_groups_hold_64_clips(output, mixed):
    good = mixed["uri"][0].as_py()
    clips = table(*({"clip_id": f"{i:03d}", "uri": good} for i in range(130)))
    write_shard(clips, 0, str(output), CONFIG)
    metadata = pq.read_metadata(shard_path(str(output), OK, 0))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [64, 64, 2]


def test_64_clips_are_one_row_group(output, mixed):
    good = mixed["uri"][0].as_py()
    write_shard(table(*({"clip_id": f"{i:03d}", "uri": good} for i in range(64))), 0, str(output), CONFIG)
    assert pq.read_metadata(shard_path(str(output), OK, 0)).num_row_groups == 1


@pytest.mark.parametrize("rate", [4_000, 16_000, 44_100])
@pytest.mark.parametrize(("seconds", "cut"), [(0.63, 0), (0.65, 1), (2.0, 1)])
def test_longer_clips_are_counted_as_cut(output, tmp_path, write_wav, rate, seconds, cut):
    uri = write_wav(tmp_path / "a.wav", noise(round(seconds * rate)), rate)
    assert write_shard(table({"clip_id": "a", "uri": uri}), 0, str(output), CONFIG).cut == cut


def test_a_cut_clip_fills_its_frames(output, tmp_path, write_wav):
    uri = write_wav(tmp_path / "a.wav", noise(32_000))
    write_shard(table({"clip_id": "a", "uri": uri}), 0, str(output), CONFIG)
    assert rows(output, OK)[0]["num_frames"] == 64


def test_clips_of_one_file_are_its_parts(output, tmp_path, write_wav):
    samples = noise(32_000)
    uri = write_wav(tmp_path / "long.wav", samples)
    part = write_wav(tmp_path / "part.wav", samples[16_000:24_000])
    clips = table({"clip_id": "cut", "uri": uri, "start_s": 1.0, "duration_s": 0.5}, {"clip_id": "part", "uri": part})
    assert write_shard(clips, 0, str(output), CONFIG).cut == 0
    cut, whole = rows(output, OK)
    assert cut["digest"] == whole["digest"]


def expected(uri):
    waveform, *_ = decode(uri, 16_000)
    return LogMel(CONFIG)(torch.from_numpy(waveform)).numpy().astype(np.float16)


def test_pandas_decodes_a_row_by_the_metadata(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    path = shard_path(str(output), OK, 0)
    layout = json.loads(pq.read_schema(path).metadata[b"ajepa.log_mel"])
    row = pd.read_parquet(path).set_index("clip_id").loc["good"]
    log_mel = np.frombuffer(row["log_mel"], layout["dtype"]).reshape(layout["shape"], order=layout["order"])
    np.testing.assert_array_equal(log_mel[:, : row["num_frames"]], expected(row["uri"]))


def test_plain_pyarrow_decodes_a_row_by_the_metadata(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    shard = pq.read_table(shard_path(str(output), OK, 0))
    layout = json.loads(shard.schema.metadata[b"ajepa.log_mel"])
    row = shard.to_pylist()[0]
    log_mel = np.frombuffer(row["log_mel"], layout["dtype"]).reshape(layout["shape"])
    np.testing.assert_array_equal(log_mel[:, : row["num_frames"]], expected(row["uri"]))


def test_the_partitions_are_read_as_one_dataset(output, mixed):
    write_shard(mixed, 0, str(output), CONFIG)
    columns = pq.read_table(str(output), columns=["clip_id", "status"], partitioning="hive")
    assert sorted(columns["status"].to_pylist()) == ["bad"] * 4 + ["ok"] * 2
