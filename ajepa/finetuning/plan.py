"""Which trainings a fine-tuning consists of, and on which clips: the parts are those of the linear probe."""

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold

from ajepa.errors import UserError
from ajepa.finetuning.clips import Labels
from ajepa.finetuning.config import FinetuneConfig
from ajepa.shards.dataset import ShardDataset


@dataclass(frozen=True)
class Fit:
    """One model: the clips it learns from, the ones its epochs are chosen on, and the ones it is tested on, once.
    Rows are ascending."""

    name: str  # of its folder and its figures
    seed: int
    fold: int | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    refit: bool  # train again on train and validation, for as many epochs as were chosen


def plan_fits(
    dataset: ShardDataset, labels: Labels, config: FinetuneConfig, seeds: int = 1, fold: int | None = None
) -> list[Fit]:
    """All fits, seed by seed and fold by fold.

    The linear probe chooses its penalty on the validation part and then learns from training and validation clips
    together. A fine-tuning that stopped at the training part would be judged on fewer clips than the probe beside it
    (240 of 320 on ESC-10), and published cross-validations train on all other folds, too. Hence `refit`, by default
    where the validation clips are taken from the training part; a dataset's own validation split is left alone.

    Raises:
        UserError: a fold that is not there, or parts that cannot be made.
    """
    parts = split(dataset, labels)
    if fold is not None:
        folds = [part.fold for part in parts if part.fold is not None]
        parts = [part for part in parts if part.fold == fold]
        if not parts:
            there = f"it has the folds {', '.join(map(str, folds))}" if folds else "it has splits, not folds"
            raise UserError(f"--fold {fold}: {there}")
    return [
        Fit(
            f"seed-{seed}" + (f"-fold-{part.fold}" if part.fold is not None else ""),
            seed,
            part.fold,
            part.train,
            part.validation,
            part.test,
            part.borrowed if config.refit == "auto" else config.refit == "on",
        )
        for seed in range(config.seed, config.seed + seeds)
        for part in parts
    ]


@dataclass(frozen=True)
class Part:
    """One division of a dataset."""

    fold: int | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    borrowed: bool  # the validation clips are the training part's


def split(dataset: ShardDataset, labels: Labels, seed: int = 0) -> list[Part]:
    """Train, validation and test rows: the dataset's splits, else its folds, else five stratified folds.

    Of folds each is tested once, and the next one is the validation part. Without a validation split a fifth of the
    training split, stratified, takes its place.
    """
    table = dataset.read_columns(["split", "fold"])
    names = np.array(table["split"].to_pylist())
    folds = table["fold"].to_numpy()
    rows = np.arange(len(names))
    first = labels.values[labels.starts[:-1]]
    if (names == "test").any():
        test, validation, train = names == "test", np.isin(names, ("valid", "validation")), names == "train"
        borrowed = not validation.any()
        if borrowed:
            validation = np.zeros(len(names), bool)
            validation[_folds(first[train], 5, seed, rows[train])[0]] = True
            train = train & ~validation
        return [Part(None, rows[train], rows[validation], rows[test], borrowed)]
    if (folds < 0).any() or len(np.unique(folds)) < 3:
        folds = np.empty(len(first), np.int64)
        for number, held in enumerate(_folds(first, 5, seed, rows)):
            folds[held] = number
    numbers = np.unique(folds)
    parts = []
    for i, number in enumerate(numbers):
        test, validation = folds == number, folds == numbers[(i + 1) % len(numbers)]
        parts.append(Part(int(number), rows[~test & ~validation], rows[validation], rows[test], True))
    return parts


def _folds(labels: np.ndarray, count: int, seed: int, rows: np.ndarray) -> list[np.ndarray]:
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [rows[held] for _, held in splitter.split(labels, labels)]
