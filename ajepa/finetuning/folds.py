"""Which trainings a fine-tuning consists of, and on which clips: the parts are those of the linear probe."""

from dataclasses import dataclass

import numpy as np

from ajepa.errors import UserError
from ajepa.evaluation.splits import make_splits
from ajepa.finetuning.config import FinetuneConfig
from ajepa.shards.dataset import ShardDataset
from ajepa.shards.labels import read_labels


@dataclass(frozen=True)
class FoldPlan:
    """One model: the clips it learns from, the ones its epochs are chosen on, and the ones it is tested on, once.
    Rows are ascending."""

    name: str  # of its folder and of its metrics
    seed: int
    fold: int | None
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    refit: bool  # train again on train and validation, for as many epochs as were chosen
    drawn: bool  # whether `seed` decides about the parts
    what: str  # how the dataset is evaluated, and which of its clips are left out, in words

    @property
    def final(self) -> np.ndarray:
        """The clips that the tested model has learned from."""
        return np.sort(np.concatenate([self.train, self.validation])) if self.refit else self.train


def plan_folds(
    dataset: ShardDataset,
    config: FinetuneConfig,
    seeds: int = 1,
    fold: int | None = None,
    split_seed: int | None = None,
) -> list[FoldPlan]:
    """All models to train, seed by seed and fold by fold.

    The linear probe chooses its penalty on the validation part and then learns from training and validation clips
    together. A fine-tuning that stopped at the training part would be judged on fewer clips than the probe beside it
    (240 of 320 on ESC-10), and published cross-validations train on all other folds, too. Hence `refit`, by default
    where the validation clips are taken from the training part; a dataset's own validation split is left alone.

    Args:
        split_seed: of drawn parts, by default each training's own seed.

    Raises:
        UserError: a fold that is not there, or parts that cannot be made.
    """
    labels = read_labels(dataset)
    plans = []
    for seed in range(config.seed, config.seed + seeds):
        splits = make_splits(dataset, labels, seed if split_seed is None else split_seed, unlabelled=config.unlabelled)
        for part in splits.parts:
            name = f"seed-{seed}" + (f"-fold-{part.fold}" if part.fold is not None else "")
            refit = part.refit if config.refit == "auto" else config.refit == "on"
            drawn = splits.drawn and split_seed is None
            parts = part.train, part.validation, part.test
            plans.append(FoldPlan(name, seed, part.fold, *parts, refit, drawn, splits.what))
    if fold is None:
        return plans
    folds = sorted({plan.fold for plan in plans if plan.fold is not None})
    if fold not in folds:
        what = f"it has the folds {', '.join(map(str, folds))}" if folds else "it has splits, not folds"
        raise UserError(f"--fold {fold}: {what}")
    return [plan for plan in plans if plan.fold == fold]
