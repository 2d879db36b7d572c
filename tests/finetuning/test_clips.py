"""Labels by row, balanced drawing, and whole clips or crops from the shards."""

import numpy as np
import pytest
from helpers.labels import labels_of
from helpers.reader_data import CLIPS, VALID, write_shards

from ajepa.config import FrontEndConfig
from ajepa.errors import UserError
from ajepa.finetuning.clips import epoch_rows, open_reader
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.folds import plan_folds
from ajepa.shards.labels import Labels, read_labels

LISTS = [[0], [1, 2], [2], [0, 2], [1]]
LABELS = labels_of("abcd", LISTS)


def test_targets_are_the_labels_of_the_rows_in_any_order():
    targets = LABELS.targets(np.array([3, 1, 1, 0]))
    assert targets.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]


def test_the_labels_of_some_clips_are_theirs_in_their_order():
    rows = np.array([3, 1, 1, 0])
    assert np.array_equal(LABELS.only(rows).table, LABELS.table[rows]) and len(LABELS.only(rows[:0])) == 0


def test_a_clip_with_several_labels_makes_a_set_multi_label(small_dataset):
    assert LABELS.multi_label and not read_labels(small_dataset).multi_label


def test_weights_are_the_inverse_frequencies_of_labels():
    assert LABELS.weights(np.arange(5)) == pytest.approx([1 / 2, 1 / 2 + 1 / 3, 1 / 3, 1 / 2 + 1 / 3, 1 / 2])


def test_balanced_drawing_takes_rare_labels_as_often_as_common_ones():
    values = np.repeat([0, 1], [90, 10])
    labels = Labels(tuple("ab"), values, np.arange(101))
    config = FinetuneConfig(balanced=True, epoch_clips=2000)
    draw = epoch_rows(config, labels, np.arange(100))
    rows = draw(0)
    assert len(rows) == 2000 and (np.diff(rows) >= 0).all()
    assert values[rows].mean() == pytest.approx(0.5, abs=0.04)
    assert np.array_equal(draw(0), rows) and not np.array_equal(draw(1), rows)


def test_only_the_rows_wanted_are_drawn():
    labels = Labels(tuple("ab"), np.zeros(10, np.int64), np.arange(11))
    rows = np.array([2, 5, 7])
    assert set(epoch_rows(FinetuneConfig(balanced=True), labels, rows)(3)) <= {2, 5, 7}
    assert epoch_rows(FinetuneConfig(), labels, rows)(3).tolist() == [2, 5, 7]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_shards(str(tmp_path_factory.mktemp("clips")), label=lambda clip: [clip % 3])


def reader_of(dataset, rows, **changes):
    labels = Labels(tuple("abc"), np.arange(CLIPS) % 3, np.arange(CLIPS + 1))
    return open_reader(FinetuneConfig(batch_size=8, **changes), dataset, labels, rows, 0, 1)


def test_an_epoch_holds_each_wanted_clip_once_and_whole(dataset):
    rows = np.arange(3, CLIPS, 5)
    reader = reader_of(dataset, rows)
    batches = [reader.batch(step) for step in range(-(-len(rows) // 8))]
    found = np.concatenate([batch.rows[batch.samples < len(rows)] for batch in batches])
    assert sorted(found) == rows.tolist()
    for batch in batches:
        assert np.array_equal(batch.num_frames, VALID[batch.rows])
        for log_mel, row, frames in zip(batch.log_mel, batch.rows, batch.num_frames, strict=True):
            assert (log_mel[0, :frames] == row).all() and np.array_equal(log_mel[1, :frames], np.arange(frames))


def test_a_longer_clip_may_be_cropped_and_a_shorter_one_is_not_repeated(dataset):
    batch = reader_of(dataset, np.arange(CLIPS), crop_frames=16).batch(0)
    assert batch.log_mel.shape == (8, 16, 16)
    assert np.array_equal(batch.num_frames, np.minimum(VALID[batch.rows], 16))
    for log_mel, frames in zip(batch.log_mel, batch.num_frames, strict=True):
        assert (np.diff(log_mel[1, :frames].astype(int)) == 1).all()


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_whole_clips_come_in_order(dataset, cache_bytes):
    reader = reader_of(dataset, np.arange(3))
    reader._keep_all = bool(cache_bytes)
    rows = np.array([0, 63, 64, 99, 100, 106, 107, CLIPS - 1])
    parts = list(reader.clips_of(rows, 2))
    assert max(len(log_mel) for log_mel, _ in parts) == 2
    assert np.concatenate([log_mel[:, 0, 0] for log_mel, _ in parts]).tolist() == rows.tolist()
    assert np.concatenate([frames for _, frames in parts]).tolist() == VALID[rows].tolist()


def test_mixup_needs_an_even_share_for_every_worker(dataset):
    labels = Labels(tuple("abc"), np.arange(CLIPS) % 3, np.arange(CLIPS + 1))
    with pytest.raises(UserError, match="--batch-size is a multiple of 6"):
        open_reader(FinetuneConfig(batch_size=8, mixup=1.0), dataset, labels, np.arange(9), 0, 3)


def test_clips_without_a_label_are_counted(build_dataset, small_dataset, tmp_path):
    from pathlib import Path

    sounds = sorted(Path(small_dataset.path).parent.glob("*.wav"))[:6]
    clips = [{"clip_id": s.stem, "uri": str(s), "labels": [i % 4 // 2] if i % 2 else []} for i, s in enumerate(sounds)]
    bare = build_dataset(
        tmp_path, clips, shard_size=6, front_end=FrontEndConfig(clip_frames=256), label_names=["a", "b"]
    )
    with pytest.raises(UserError, match=r"3 of 6 clips .* have no label: --unlabelled drop leaves them out"):
        plan_folds(bare, FinetuneConfig())
    labels = read_labels(bare)
    assert labels.targets(np.arange(6)).sum(axis=1).tolist() == [0, 1, 0, 1, 0, 1]
    assert labels.weights(np.arange(6)) == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2])
