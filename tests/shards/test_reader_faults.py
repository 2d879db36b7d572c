"""Damaged shards: one clear line that names the shard and what is known of the place, and what to do."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.reader_data import CLIPS, reader, write_shards

from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.schema import ROW_GROUP

TO_DO = r"\. Restore the shard \(`python pipelines/preprocess\.py --verify .* run the same command again$"


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("undamaged") / "shards"))


@pytest.fixture
def dataset(undamaged, tmp_path):
    """A copy of its own for each test."""
    return open_dataset(str(shutil.copytree(undamaged.path, tmp_path / "shards")))


def shard(dataset, index: int) -> Path:
    return Path(dataset.path, dataset.shards[index].name)


def rewrite(dataset, index: int, change, row_group_size: int = ROW_GROUP) -> None:
    path = shard(dataset, index)
    table = change(pq.ParquetFile(path).read())
    pq.write_table(table, path, row_group_size=row_group_size, compression="none", use_dictionary=False)


def changed(row: int, **values):
    """A change of a table: other values in one row."""

    def change(table):
        rows = table.to_pylist()
        rows[row] |= {name: value(rows[row][name]) for name, value in values.items()}
        return pa.Table.from_pylist(rows, table.schema)

    return change


def read(dataset, **changes):
    return reader(dataset, batch_size=CLIPS, **changes).batch(0)


def test_a_missing_shard(dataset):
    shard(dataset, 0).unlink()
    with pytest.raises(UserError, match=f"shard-00000.parquet: is missing{TO_DO}"):
        read(dataset)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 1000])
def test_a_shard_of_garbage(dataset, content):
    shard(dataset, 3).write_bytes(content)
    with pytest.raises(UserError, match=f"shard-00003.parquet: cannot be read: .*{TO_DO}"):
        read(dataset)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_shard_cut_short(dataset, share):
    content = shard(dataset, 3).read_bytes()
    shard(dataset, 3).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f"shard-00003.parquet: cannot be read: .*{TO_DO}"):
        read(dataset)


def test_a_shard_cut_short_while_it_is_in_use(dataset):
    """Its footer is known by then."""
    source = reader(dataset, batch_size=2, cache_bytes=0, window=1)
    source.batch(0)
    for index in (0, 1, 3):
        content = shard(dataset, index).read_bytes()
        shard(dataset, index).write_bytes(content[:200])
    with pytest.raises(UserError, match=f"cannot be read: .*{TO_DO}"):
        list(source.batches(1, CLIPS))


def test_a_shard_with_other_rows_than_promised(dataset):
    rewrite(dataset, 1, lambda table: table.slice(0, 5))
    with pytest.raises(UserError, match=f"shard-00001.parquet: 5 rows, dataset.json says 7{TO_DO}"):
        read(dataset)


def test_a_shard_of_other_row_groups(dataset):
    rewrite(dataset, 3, lambda table: table, row_group_size=100)
    with pytest.raises(UserError, match=f"shard-00003.parquet: row group 0 has 100 rows, not 64{TO_DO}"):
        read(dataset)


def flip(path: Path, what: bytes) -> None:
    """One bit of the last byte of the only place where `what` stands in a file."""
    content = bytearray(path.read_bytes())
    assert content.count(what) == 1
    content[content.index(what) + len(what) - 1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_flipped_bit_in_a_log_mel_is_named_by_row_and_clip(dataset, threads):
    row = 70 + 107  # of the last shard
    log_mel = pq.ParquetFile(shard(dataset, 3)).read()["log_mel"][70].as_py()
    flip(shard(dataset, 3), log_mel)
    message = f"shard-00003.parquet: row 70, clip '{row:04d}': log_mel does not match its digest{TO_DO}"
    with pytest.raises(UserError, match=message):
        list(reader(dataset, threads=threads).batches(0, 20))


def test_a_flipped_bit_in_a_digest_is_found(dataset):
    digest = pq.ParquetFile(shard(dataset, 1)).read()["digest"][4].as_py()
    flip(shard(dataset, 1), digest.encode())
    with pytest.raises(UserError, match="row 4, clip '0104': log_mel does not match its digest"):
        read(dataset)


@pytest.mark.parametrize("frames", [0, -3, 49])
def test_valid_frames_out_of_range_are_found(dataset, frames):
    rewrite(dataset, 1, changed(2, num_frames=lambda _: frames))
    with pytest.raises(UserError, match=f"row 2, clip '0102': {frames} valid frames of 48{TO_DO}"):
        read(dataset)


def test_a_log_mel_of_another_length_is_found(dataset):
    rewrite(dataset, 1, changed(2, log_mel=lambda data: data[:-2]))
    with pytest.raises(UserError, match=f"shard-00001.parquet: a log_mel does not have the .*{TO_DO}"):
        read(dataset)


def test_a_missing_value_is_found(dataset):
    rewrite(dataset, 1, changed(2, num_frames=lambda _: None))
    with pytest.raises(UserError, match=f"row group 0 has values missing{TO_DO}"):
        read(dataset)


def test_any_flipped_byte_of_the_log_mels_is_found_or_in_no_log_mel(dataset):
    """Over the whole file, its pages' headers included: an error, or the very same log-mels."""
    whole = read(dataset).log_mel
    content = shard(dataset, 1).read_bytes()
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        shard(dataset, 1).write_bytes(damaged)
        try:
            again = read(dataset).log_mel
        except UserError as error:
            assert "shard-00001.parquet" in str(error)
        else:
            same_frames = np.count_nonzero((again != whole).any(axis=(1, 2))) <= 1  # one clip's num_frames, in range
            assert same_frames


def test_without_verify_a_flipped_bit_passes(dataset):
    log_mel = pq.ParquetFile(shard(dataset, 1)).read()["log_mel"][4].as_py()
    flip(shard(dataset, 1), log_mel)
    assert len(read(dataset, verify=False).rows) == CLIPS


def test_a_row_group_is_checked_the_first_time_only(dataset):
    """What rots on disk after that is the business of --verify."""
    source = reader(dataset, batch_size=CLIPS, cache_bytes=0)
    source.batch(0)
    source._groups.drop(lambda group: True)
    log_mel = pq.ParquetFile(shard(dataset, 1)).read()["log_mel"][4].as_py()
    flip(shard(dataset, 1), log_mel)
    assert source._source._verified.all() and len(source.batch(1).rows) == CLIPS


def test_a_damaged_shard_restored_is_read_by_the_same_reader(dataset):
    content = shard(dataset, 1).read_bytes()
    source = reader(dataset, batch_size=CLIPS)
    shard(dataset, 1).unlink()
    with pytest.raises(UserError, match="is missing"):
        source.batch(0)
    shard(dataset, 1).write_bytes(content)
    assert len(source.batch(0).rows) == CLIPS


def test_shards_that_do_not_add_up_are_found_before_the_first_step(dataset):
    with pytest.raises(UserError, match="has shards of 237 rows for 236 clips"):
        reader(dataclasses.replace(dataset, num_clips=CLIPS - 1))


def test_clips_are_named(dataset):
    assert reader(dataset).clip_ids(np.array([236, 0, 103, 0])) == ["0236", "0000", "0103", "0000"]


def test_naming_clips_of_a_missing_shard_is_the_same_error(dataset):
    shard(dataset, 1).unlink()
    with pytest.raises(UserError, match=f"shard-00001.parquet: is missing{TO_DO}"):
        reader(dataset).clip_ids(np.array([103]))
