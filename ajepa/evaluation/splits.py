"""Which clips a probe is trained on, chosen on and tested on: the dataset's own splits, else its folds, else folds that
are drawn. What cannot be evaluated is refused before anything is computed."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ajepa.choices import Unlabelled
from ajepa.errors import UserError
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.labels import Labels

# Split names by role; the first that a dataset has is taken. AudioSet's are its segment lists.
TRAIN = ("train", "training", "balanced_train", "bal_train", "unbalanced_train", "unbal_train", "dev")
VALIDATION = ("valid", "validation", "val", "dev")
TEST = ("test", "testing", "eval", "evaluation")
SIMILAR = 0.78  # of difflib, from which a name is taken for a misspelt one: "trian", "validaton"
DRAWN_FOLDS = 5
VALIDATION_SHARE = 0.1  # of the training clips, drawn where there is no validation split
NAMED = 3  # classes or clips that a message names


@dataclass(frozen=True)
class Split:
    """One training and test: indices of clips, ascending."""

    train: np.ndarray
    validation: np.ndarray  # every choice is made here
    test: np.ndarray  # used for the score alone
    refit: bool  # whether what was chosen is trained again on train and validation together
    fold: int | None = None  # number of the tested fold

    @property
    def all_train(self) -> np.ndarray:
        return np.sort(np.concatenate([self.train, self.validation])) if self.refit else self.train


@dataclass(frozen=True)
class Splits:
    """How a dataset is evaluated. Every clip is in at most one part's test."""

    parts: tuple[Split, ...]
    what: str  # in words
    drawn: bool  # whether a seed decides


def make_splits(
    dataset: ShardDataset,
    labels: Labels,
    seed: int = 0,
    train_splits: Sequence[str] = (),
    unlabelled: Unlabelled = "auto",
) -> Splits:
    """The dataset's test split, its folds or drawn folds, in this order.

    A test split goes with a training split (of AudioSet's two the balanced one) and a validation split, or a tenth of
    the training clips drawn by seed and trained on too once the choice is made. With folds every fold is tested once;
    the choice is made on the next one, and the chosen probe trained on all folds but the tested one.

    Case and blanks in the names of splits do not matter.

    Args:
        train_splits: names to train on instead.
        unlabelled: what clips without a label are: "negative" for every class, where clips may have several labels;
            "drop" leaves them out; "refuse" is an error where there are any; "auto" is "negative" where clips may have
            several labels, else "refuse".

    Raises:
        UserError: clips without a label, splits of which none is known to be tested on, a class that cannot be learnt,
            an empty split, too few folds.
    """
    table = dataset.read_columns(["split", "fold"])
    split = np.array([(name or "").strip().casefold() for name in table["split"].to_pylist()], object)
    fold, everything = table["fold"].to_numpy(), np.arange(len(split))
    if unlabelled == "negative" and not labels.multi_label:
        raise UserError("--unlabelled negative is for clips that may have several labels; here they have one: use drop")
    if unlabelled == "auto":
        unlabelled = "negative" if labels.multi_label else "refuse"
    labelled = labels.table.any(axis=1)
    kept = np.flatnonzero(labelled) if unlabelled == "drop" else everything
    own = labels if len(kept) == len(everything) else labels.only(kept)
    splits = _make(
        dataset, own, split[kept], fold[kept], seed, [n.strip().casefold() for n in train_splits], unlabelled
    )
    for part in splits.parts:
        _check_classes(part, own)
    if len(kept) == len(everything):
        bare = int((~labelled).sum())
        return dataclasses.replace(splits, what=f"{splits.what}; {bare} clips of no class") if bare else splits
    parts = tuple(
        dataclasses.replace(p, train=kept[p.train], validation=kept[p.validation], test=kept[p.test])
        for p in splits.parts
    )
    what = f"{splits.what}; {len(everything) - len(kept)} clips without a label left out"
    return dataclasses.replace(splits, parts=parts, what=what)


def _make(
    dataset: ShardDataset,
    labels: Labels,
    split: np.ndarray,
    fold: np.ndarray,
    seed: int,
    train_splits: Sequence[str],
    unlabelled: Unlabelled,
) -> Splits:
    if unlabelled == "refuse":
        _check_labelled(dataset, labels)
    names = sorted({name for name in split if name})
    test = _first(TEST, names)
    if train_splits and not test:
        raise UserError(f"--train-splits needs a test split; {dataset.path!r} has {_listed(names) or 'no splits'}")
    if test:
        return _by_split(dataset, labels, split, names, test, seed, train_splits)
    if (fold >= 0).any():
        splits = _by_fold(dataset, labels, fold)
        unused = f"; its splits {_listed(names)} are not used" if names else ""
        return dataclasses.replace(splits, what=splits.what + unused)
    if names:
        raise UserError(
            f"{dataset.path!r} has the splits {_listed(names)}, and none of them is known to be the one to test on "
            f"({', '.join(TEST)}): name one so in the manifest, or give its clips folds or no split"
        )
    return _drawn(dataset, labels, seed)


def stratified(targets: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold [n] of each clip, drawn so that every class is spread evenly. A clip with several labels counts for the
    rarest of them.

    Args:
        targets: [n, C] bool.
    """
    rng = np.random.default_rng(seed)
    size = targets.sum(axis=0)
    key = np.where(targets, size, len(targets) + 1).argmin(axis=1)
    key[~targets.any(axis=1)] = targets.shape[1]  # those without a label are spread evenly, too
    order = rng.permutation(len(key))
    order = order[np.argsort(key[order], kind="stable")]  # class after class, shuffled inside
    start = rng.permutation(folds)[0]
    result = np.empty(len(key), np.int64)
    result[order] = (np.arange(len(key)) + start) % folds  # in turn: sizes differ by one at most
    return result


def _by_split(
    dataset: ShardDataset,
    labels: Labels,
    split: np.ndarray,
    names: list[str],
    test: tuple[str, ...],
    seed: int,
    train_splits: Sequence[str],
) -> Splits:
    missing = sorted(set(train_splits) - set(names))
    if missing:
        raise UserError(f"--train-splits {_listed(missing)}: no clip has this split; there are {_listed(names)}")
    validation = _first(VALIDATION, [n for n in names if n not in train_splits])
    train = tuple(train_splits) or _first(TRAIN, names)
    if train == validation:  # "dev" alone
        validation = ()
    if not train:
        raise UserError(f"{dataset.path!r} has no training split: its splits are {_listed(names)}; name one in "
                        "--train-splits")  # fmt: skip
    if set(train) & set(test):
        raise UserError(f"--train-splits {_listed(train)}: this is what the probe is tested on")
    rows = {role: np.flatnonzero(np.isin(split, part)) for role, part in
            (("train", train), ("validation", validation), ("test", test))}  # fmt: skip
    rest = sorted(set(names) - set(train) - set(validation) - set(test))
    _check_spelling(dataset, split, rest)
    what = f"split {_listed(train)} to train, {_listed(test)} to test"
    if validation:
        part = Split(rows["train"], rows["validation"], rows["test"], refit=False)
        what += f", {_listed(validation)} to choose"
    else:
        chosen = _tenth(labels.table[rows["train"]], seed)
        part = Split(rows["train"][~chosen], rows["train"][chosen], rows["test"], refit=True)
        what += ", a tenth of the training clips drawn to choose"
    left = len(split) - sum(map(len, rows.values()))
    if left:
        what += f"; {left} clips of {_listed(rest) if rest else 'no split'} left out"
    return Splits((part,), what, drawn=not validation)


def _check_spelling(dataset: ShardDataset, split: np.ndarray, unused: Sequence[str]) -> None:
    """Refuse a split that is used for nothing and has nearly the name of one that would be. Numbers tell names apart on
    purpose.

    Raises:
        UserError: there is one.
    """
    known = sorted({*TRAIN, *VALIDATION, *TEST})
    for name in unused:
        near = difflib.get_close_matches(name, known, 1, SIMILAR)
        if near and name not in known and not any(letter.isdigit() for letter in name):
            raise UserError(
                f"{dataset.path!r} has {int((split == name).sum())} clips of the split {name!r}, which is not known: "
                f"if {near[0]!r} is meant, correct it in the manifest"
            )


def _by_fold(dataset: ShardDataset, labels: Labels, fold: np.ndarray) -> Splits:
    if (fold < 0).any():
        raise UserError(f"{int((fold < 0).sum())} of {len(fold)} clips in {dataset.path!r} have no fold: give all or "
                        "none of them one in the manifest")  # fmt: skip
    numbers = np.unique(fold)
    if len(numbers) < 3:
        raise UserError(
            f"{dataset.path!r} has {len(numbers)} fold{'s' * (len(numbers) > 1)}: a probe needs at least three, one "
            "to test, one to choose on, one to train"
        )
    return Splits(_rotate(fold), f"{len(numbers)} folds", drawn=False)


def _drawn(dataset: ShardDataset, labels: Labels, seed: int) -> Splits:
    size = labels.table.sum(axis=0)
    few = np.flatnonzero((size > 0) & (size < DRAWN_FOLDS))
    if len(few):
        raise UserError(
            f"class {labels.names[few[0]]!r} has {size[few[0]]} clips: {DRAWN_FOLDS} folds need at least "
            f"{DRAWN_FOLDS} of each class ({len(few)} classes have fewer)"
        )
    return Splits(
        _rotate(stratified(labels.table, DRAWN_FOLDS, seed)), f"{DRAWN_FOLDS} folds drawn by seed", drawn=True
    )


def _rotate(fold: np.ndarray) -> tuple[Split, ...]:
    numbers = np.unique(fold)
    following = np.roll(numbers, -1)
    return tuple(
        Split(
            np.flatnonzero(~np.isin(fold, (own, then))),
            np.flatnonzero(fold == then),
            np.flatnonzero(fold == own),
            refit=True,
            fold=int(own),
        )
        for own, then in zip(numbers, following, strict=True)
    )


def _tenth(targets: np.ndarray, seed: int) -> np.ndarray:
    """[n] true for the drawn validation clips; no class loses its last training clip to them."""
    chosen = stratified(targets, round(1 / VALIDATION_SHARE), seed) == 0
    lost = targets.any(axis=0) & ~targets[~chosen].any(axis=0)
    chosen[targets[:, lost].any(axis=1)] = False
    if not chosen.any():
        raise UserError(f"{len(targets)} training clips are too few to draw a validation part from: add a split")
    return chosen


def _check_labelled(dataset: ShardDataset, labels: Labels) -> None:
    bare = int((~labels.table.any(axis=1)).sum())
    if bare:
        negative = "--unlabelled negative counts them as clips of no class, " if labels.multi_label else ""
        raise UserError(
            f"{bare} of {len(labels)} clips in {dataset.path!r} have no label: {negative}--unlabelled drop "
            "leaves them out"
        )


def _check_classes(part: Split, labels: Labels) -> None:
    """A class that is tested or chosen on must have been trained on."""
    for rows, where, known in (
        (part.test, "tested", part.all_train),
        (part.validation, "in the validation part", part.train),
    ):
        unseen = np.flatnonzero(labels.table[rows].any(axis=0) & ~labels.table[known].any(axis=0))
        if len(unseen):
            raise UserError(
                f"class {_listed([labels.names[i] for i in unseen])} is {where} but has no clip in the training part: "
                "leave its clips out of the manifest, or spread them over the folds or splits"
            )
    if not (len(part.train) and len(part.test)):
        raise UserError("the training or the test part is empty")


def _first(roles: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return next(((role,) for role in roles if role in names), ())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more
