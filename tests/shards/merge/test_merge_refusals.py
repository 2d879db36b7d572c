"""What cannot be merged is refused by name, before or while it is read, and nothing of it is trusted later."""

import shutil

import pyarrow.parquet as pq
import pytest
from helpers.merged import assert_is, merge

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.shards.dataset import open_dataset
from ajepa.shards.merge import merge_datasets
from ajepa.shards.schema import BAD, OK


def test_fewer_than_two_are_refused(parts, output):
    with pytest.raises(UserError, match="at least two datasets, got 1"):
        merge(parts[:1], output)


def test_one_dataset_twice_is_refused(parts, output):
    with pytest.raises(UserError, match="is given twice"):
        merge([parts[0], f"file://{parts[0]}/"], output)


def test_other_front_ends_are_refused_by_name(parts, build, output):
    other = build("other", slice(21, None), front_end=FrontEndConfig(clip_frames=32, n_mels=64, f_max=7_000.0))
    with pytest.raises(UserError, match=r"clip_frames: 64 -> 32; f_max: 8000.0 -> 7000.0"):
        merge([parts[0], other.path], output)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (slice(8, 12), r"1 clip ids .*'clip07'"),
        (slice(0, 12), r"9 clip ids .*\('clip00', 'clip01', 'clip02', \.\.\.\)"),
        (slice(1, None, 12), r"1 clip ids .*'gone00'"),  # a bad row
    ],
)
def test_clips_in_two_datasets_are_refused_before_anything_is_written(parts, build, output, part, match):
    overlapping = build(f"overlap{part.start}-{part.stop}", part)
    with pytest.raises(UserError, match=match):
        merge([parts[0], overlapping.path], output)
    assert not output.exists()


def test_an_output_in_an_input_is_refused(parts):
    for output in (parts[1], f"{parts[1]}/sub", f"file://{parts[1]}/../second"):
        with pytest.raises(UserError, match="lies in the input"):
            merge(parts, output)
    assert open_dataset(parts[1]).num_clips
    assert merge(parts[:2], f"{parts[1]}-merged")  # beside it is not in it


def test_an_output_with_something_else_is_refused(parts, output, tmp_path, whole):
    output.mkdir()
    (output / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        merge(parts, output)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        merge(parts, tmp_path / "file")
    with pytest.raises(UserError, match="holds another finished dataset"):
        merge(parts, whole.path)


def test_an_unfinished_dataset_is_refused(parts, output, tmp_path):
    unfinished = shutil.copytree(parts[1], tmp_path / "unfinished")
    (unfinished / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        merge([parts[0], str(unfinished)], output)


def test_another_merge_into_an_unfinished_one_is_refused(parts, output):
    next(merge_datasets(parts, str(output)))
    for other in (parts[:2], parts[::-1]):
        with pytest.raises(UserError, match="holds an unfinished merge of other datasets"):
            merge(other, output)


def test_an_input_that_changed_in_between_is_refused(parts, build, output, tmp_path):
    first = shutil.copytree(parts[0], tmp_path / "first")
    next(merge_datasets([str(first), parts[1]], str(output)))
    shutil.rmtree(first)
    shutil.copytree(build("otherwise", slice(0, 9), shard_size=4).path, first)  # same content in other shards
    with pytest.raises(UserError, match="before they changed"):
        merge([str(first), parts[1]], output)


def rot(folder, change, number=0):
    """Rewrite the rows of one shard with one of them changed in place."""
    path = sorted((folder / OK).iterdir())[number]
    table = pq.ParquetFile(path).read()
    found = table.to_pylist()
    change(found[2])
    pq.write_table(table.from_pylist(found, table.schema), path, compression="none")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(log_mel=r["log_mel"][:-1] + b"x"), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(log_mel=None), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(digest=None), r"row 2, clip 'clip\d+': log_mel does not match"),
        (lambda r: r.update(labels=[1, 7]), "label 7 has no name"),
    ],
)
def test_a_rotten_row_is_named_and_the_merge_goes_on_once_it_is_mended(parts, whole, output, tmp_path, change, match):
    copy = shutil.copytree(parts[1], tmp_path / "second")
    rot(copy, change, 1)
    paths = [parts[0], str(copy), parts[2]]
    with pytest.raises(UserError, match=rf"second/status=ok/shard-00001\.parquet.*{match}"):
        merge(paths, output)
    assert len(list(output.glob(f"{OK}/*"))) == 3
    shutil.copytree(parts[1], copy, dirs_exist_ok=True)
    merge(paths, output)
    assert_is(output, whole)


@pytest.mark.parametrize("status", [OK, BAD])
def test_a_shard_that_is_gone_is_named(parts, output, tmp_path, status):
    copy = shutil.copytree(parts[0], tmp_path / "first")
    (copy / status / "shard-00000.parquet").unlink()
    with pytest.raises(UserError, match=rf"{copy}.*make that dataset again"):
        merge([str(copy), parts[1]], output)
    assert not output.exists()


def test_a_shard_cut_short_is_named(parts, output, tmp_path):
    copy = shutil.copytree(parts[0], tmp_path / "first")
    path = copy / OK / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{copy}.*cannot be read"):
        merge([str(copy), parts[1]], output)
