"""Which clips train, choose and test: splits before folds before drawn folds; what cannot be evaluated is named."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from helpers.properties import examples
from hypothesis import given
from hypothesis import strategies as st

from ajepa.errors import UserError
from ajepa.evaluation.splits import make_splits, stratified
from ajepa.shards.labels import read_labels


@dataclasses.dataclass
class Rows:
    """Stands for a dataset: the columns splits are made of."""

    labels: list
    fold: list
    split: list = dataclasses.field(default_factory=list)
    path: str = "shards"
    label_names: tuple = ("a", "b", "c")

    def read_columns(self, columns):
        table = {
            "labels": pa.array(self.labels, pa.list_(pa.int32())),
            "fold": self.fold,
            "split": self.split or [""] * len(self.labels),
        }
        return pa.table({name: table[name] for name in columns})


def make(rows: Rows, seed: int = 0, train=(), unlabelled="auto"):
    return make_splits(rows, read_labels(rows), seed, train, unlabelled)


@pytest.mark.parametrize("names", [("Train", "Test"), (" train", "TEST "), ("TRAINING", "Evaluation")])
def test_case_and_blanks_of_splits_do_not_matter(names):
    """They were ignored, and folds drawn over everything: another protocol."""
    made = make(Rows([[0], [1]] * 20, [-1] * 40, [names[0]] * 30 + [names[1]] * 10))
    (part,) = made.parts
    assert part.test.tolist() == list(range(30, 40)) and len(part.all_train) == 30
    assert repr(names[1].strip().casefold()) in made.what


@pytest.mark.parametrize("names", [("train", "valid"), ("left", "right"), ("train",)])
def test_splits_without_one_to_test_on_are_refused(names):
    rows = Rows([[0], [1]] * 20, [-1] * 40, [names[i % len(names)] for i in range(40)])
    with pytest.raises(UserError, match="none of them is known to be the one to test on"):
        make(rows)


def test_folds_go_before_splits_that_cannot_be_tested_on():
    made = make(Rows([[0], [1]] * 20, [i // 10 for i in range(40)], ["left"] * 40))
    assert len(made.parts) == 4 and made.what.endswith("4 folds; its splits 'left' are not used")


BARE = [[], [0], [1], [0], [1]] * 10


@pytest.mark.parametrize("with_folds", [True, False])
def test_clips_without_a_label_are_dropped_on_demand(with_folds):
    made = make(Rows(BARE, [i % 4 for i in range(50)] if with_folds else [-1] * 50), unlabelled="drop")
    for part in made.parts:
        rows = np.concatenate([part.train, part.validation, part.test])
        assert sorted(rows) == [i for i in range(50) if i % 5]
    assert made.what.endswith("; 10 clips without a label left out")


@pytest.mark.parametrize("with_folds", [True, False])
@pytest.mark.parametrize("unlabelled", ["auto", "negative"])
def test_clips_without_a_label_are_negatives_where_clips_may_have_several(with_folds, unlabelled):
    labels = [[], [0], [1], [0, 1], [1]] * 10
    made = make(Rows(labels, [i % 4 for i in range(50)] if with_folds else [-1] * 50), unlabelled=unlabelled)
    assert made.what.endswith("; 10 clips of no class")
    assert sorted(np.concatenate([part.test for part in made.parts])) == list(range(50))
    if not with_folds:
        assert {int((part.test % 5 == 0).sum()) for part in made.parts} == {2}  # spread evenly
    with pytest.raises(UserError, match="--unlabelled negative is for clips that may have several labels"):
        make(Rows(BARE, [-1] * 50), unlabelled="negative")
    with pytest.raises(UserError, match=r"10 of 50 clips .*--unlabelled negative counts .*--unlabelled drop leaves"):
        make(Rows(labels, [-1] * 50), unlabelled="refuse")
    with pytest.raises(UserError, match=r"10 of 50 clips .* have no label: --unlabelled drop"):
        make(Rows(BARE, [-1] * 50))


def test_every_fold_is_tested_once_and_chosen_on_the_next():
    made = make(Rows([[0], [1], [0], [1]] * 3, [1, 1, 2, 2] * 2 + [3] * 4))
    assert [part.fold for part in made.parts] == [1, 2, 3] and not made.drawn
    assert made.parts[0].test.tolist() == [0, 1, 4, 5] and made.parts[0].validation.tolist() == [2, 3, 6, 7]
    assert all(sorted([*p.train, *p.validation, *p.test]) == list(range(12)) and p.refit for p in made.parts)


def test_folds_are_drawn_evenly_and_by_seed_where_there_are_none():
    rows = Rows([[i % 3] for i in range(60)], [-1] * 60)
    made = make(rows)
    assert made.drawn and len(made.parts) == 5
    assert all(np.bincount(p.test % 3).tolist() == [4, 4, 4] for p in made.parts)
    assert make(rows).parts[0].test.tolist() == made.parts[0].test.tolist() != make(rows, 1).parts[0].test.tolist()


@given(st.integers(2, 8), st.lists(st.integers(0, 5), min_size=10, max_size=80), st.integers(0, 99))
@examples(50)
def test_a_class_is_dealt_out_evenly(folds, labels, seed):
    chosen = stratified(np.eye(6, dtype=bool)[labels], folds, seed)
    for c in range(6):
        counts = np.bincount(chosen[np.array(labels) == c], minlength=folds)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [("train", "valid", "test"), ("training", "validation", "testing"), ("balanced_train", "dev", "eval")],
)
def test_splits_go_before_folds(train, valid, test):
    made = make(Rows([[0], [1]] * 6, [1, 2, 3] * 4, [train] * 6 + [valid] * 2 + [test] * 4))
    (part,) = made.parts
    assert (len(part.train), len(part.validation), len(part.test)) == (6, 2, 4)
    assert not part.refit and not made.drawn and part.fold is None


def test_a_tenth_of_the_training_split_is_drawn_where_nothing_is_there_to_choose_on():
    rows = Rows([[0], [1]] * 60, [-1] * 120, ["train"] * 100 + ["test"] * 20)
    (part,) = make(rows).parts
    assert len(part.validation) == 10 and part.refit and make(rows).drawn
    assert len(part.all_train) == 100 and set(part.test) == set(range(100, 120))


@pytest.mark.parametrize(("name", "meant"), [("trian", "train"), ("Validaton", "validation"), ("trainig", "training")])
def test_a_misspelt_split_is_not_left_out(name, meant):
    rows = Rows([[0], [1]] * 40, [-1] * 80, ["train"] * 40 + ["test"] * 20 + ["valid"] * 10 + [name] * 10)
    with pytest.raises(UserError, match=f"10 clips of the split '{name.casefold()}', .* if '{meant}' is meant"):
        make(rows)


@pytest.mark.parametrize("name", ["extra", "unlabelled", "test2", "train_other", "unused"])
def test_a_split_of_another_name_is_left_out_and_named(name):
    rows = Rows([[0], [1]] * 40, [-1] * 80, ["train"] * 40 + ["test"] * 30 + [name] * 10)
    assert f"10 clips of '{name}' left out" in make(rows).what


def test_audioset_trains_on_the_balanced_list_unless_told():
    rows = Rows([[0], [1]] * 40, [-1] * 80, ["balanced_train"] * 30 + ["unbalanced_train"] * 30 + ["eval"] * 20)
    (part,) = make(rows).parts
    assert len(part.all_train) == 30 and "30 clips of 'unbalanced_train' left out" in make(rows).what
    (part,) = make(rows, train=("balanced_train", "unbalanced_train")).parts
    assert len(part.all_train) == 60


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (Rows([[0], [], [1], [1]] * 5, [1, 2, 3, 3] * 5), "5 of 20 clips in 'shards' have no label"),
        (Rows([[]] * 20, [1, 2] * 10), "no clip in 'shards' has a label"),
        (Rows([[0]] * 20, [1, 2] * 10), "the same label"),
        (Rows([[0], [1]] * 10, [1, 2] * 10), "has 2 folds: a probe needs at least three"),
        (Rows([[0], [1]] * 10, [1, 2, -1, 3] * 5), "5 of 20 clips in 'shards' have no fold"),
        (Rows([[0]] * 20 + [[1]] * 3, [-1] * 23), "class 'b' has 3 clips: 5 folds need at least 5"),
        (Rows([[0], [1]] * 6 + [[2]], [1, 1, 2, 2, 3, 3] * 2 + [3]), "class 'c' is .* no clip in the training part"),
        (Rows([[0], [1]] * 6, [-1] * 12, ["test"] * 6 + ["mine"] * 6), "has no training split: its splits are 'mine'"),
        (Rows([[0], [1]] * 6, [-1] * 12, ["train"] * 6 + ["test"] * 6), "too few to draw a validation part|tested"),
    ],
)  # fmt: skip
def test_mistakes_are_named(rows, match):
    with pytest.raises(UserError, match=match):
        make(rows)


def test_training_on_the_test_split_is_refused():
    with pytest.raises(UserError, match="this is what the probe is tested on"):
        make(Rows([[0], [1]] * 6, [-1] * 12, ["train"] * 6 + ["test"] * 6), train=("test",))
