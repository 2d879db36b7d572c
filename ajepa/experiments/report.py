"""A table from results: scores over seeds, paired differences to the default with intervals, cost, published values."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ajepa.choices import POOLINGS
from ajepa.config import Config
from ajepa.errors import UserError
from ajepa.evaluation.comparison import MEL, PRETRAINED, RANDOM
from ajepa.evaluation.metrics import interval
from ajepa.evaluation.tables import markdown_table
from ajepa.experiments.results import Result, right_clips
from ajepa.experiments.settings import default_of, published_text
from ajepa.experiments.trial import Kind, Trial
from ajepa.finetuning.start import SUPERVISED

REPLICATES = 2000
MAIN_POOLING = "mean"  # the other poolings are shown beside it


@dataclass(frozen=True)
class Difference:
    """Of a setting's scores to the default's, over the seeds and test clips that both have."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "better" if self.low > 0 else "worse" if self.high < 0 else "level"

    def __str__(self) -> str:
        return f"{self.mean:+z.3f} ({self.low:+z.3f} to {self.high:+z.3f})"


@dataclass(frozen=True)
class Line:
    """A setting's row: the number of its seeds, scores by (protocol, pooling), differences by protocol."""

    setting: str
    seeds: int
    scores: dict[tuple[str, str], list[float]]
    differences: dict[str, Difference]
    training: dict[str, float]  # effective rank, clips/s, FLOPs a clip, steps
    published: str

    def score(self, protocol: str, pooling: str) -> str | None:
        values = self.scores.get((protocol, pooling), [])
        if not values:
            return None
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"


def keys_of(configs: Mapping[str, Config], base: Config, dataset_hash: str) -> dict[str, str]:
    """Keys of a table's rows: its settings in their order, then the baselines."""
    keys = {setting: Trial(PRETRAINED, config, dataset_hash).key for setting, config in configs.items()}
    baselines: tuple[Kind, ...] = (SUPERVISED, RANDOM, MEL)
    return keys | {kind: Trial(kind, base, dataset_hash).key for kind in baselines}


def lines_of(
    name: str,
    configs: Mapping[str, Config],
    base: Config,
    results: Mapping[str, Result],
    dataset_hash: str,
    probe_hash: str,
    seeds: Sequence[int],
) -> list[Line]:
    """Rows of a table, in the order of `keys_of`. A setting without any result is left out.

    Args:
        configs: by setting, of any seed.
        dataset_hash, probe_hash: of the clips trained on and probed on.
    """
    keys = keys_of(configs, base, dataset_hash)
    default = keys[default_of(configs, base)]
    lines = []
    for setting, key in keys.items():
        result = results.get(key)
        if result is None:
            continue
        own = [seed for seed in seeds if seed in result.seeds] if setting != MEL else list(result.seeds)[:1]
        scores: dict[tuple[str, str], list[float]] = {}
        for seed in own:
            for found in result.seeds[seed]["scores"]:
                if found["data"]["hash"] == probe_hash:
                    scores.setdefault((found["protocol"], found["pooling"]), []).append(found["score"])
        if not scores:
            continue
        differences = {}
        if key != default and default in results:
            for protocol in dict.fromkeys(protocol for protocol, _ in scores):
                pooling = main_pooling(protocol, scores)
                found_difference = difference(
                    result, results[default], probe_hash, protocol, seeds, setting == MEL, pooling
                )
                if found_difference is not None:
                    differences[protocol] = found_difference
        lines.append(
            Line(
                setting, len(own), scores, differences, training_metrics([result.seeds[seed] for seed in own]),
                published_text(name, setting),
            )
        )  # fmt: skip
    return lines


def main_pooling(protocol: str, scores: Iterable[tuple[str, str]]) -> str:
    """The pooling whose differences are tested: the mean where there are scores of it, else what a fine-tuning has.

    Args:
        scores: (protocol, pooling) of each there is.
    """
    found = [pooling for own, pooling in scores if own == protocol]
    return MAIN_POOLING if MAIN_POOLING in found else found[0]


def training_metrics(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over seeds; {} of baselines."""
    names = ("effective_rank", "clips_per_second", "flops_per_clip", "steps")
    return {n: float(np.mean([o[n] for o in outcomes])) for n in names if all(n in o for o in outcomes) and outcomes}


def difference(
    one: Result,
    other: Result,
    data: str,
    protocol: str,
    seeds: Sequence[int],
    same_for_all: bool = False,
    pooling: str = MAIN_POOLING,
) -> Difference | None:
    """Paired by seed and test clip, with a 95% percentile interval of a bootstrap over both. Of multi-label sets over
    seeds alone; of one seed over clips alone.

    Seeds drawn from n have (n - 1) / n of the variance between seeds, 2/3 for 3: their deviations from the mean of all
    n are scaled by sqrt(n / (n - 1)).

    Args:
        same_for_all: `one` has no seed: its only outcome is compared with all of the other's.

    Returns:
        None where no seed has both.
    """
    own_seed = next(iter(one.seeds)) if same_for_all else None
    pairs = []
    for seed in seeds:
        a = one.score(seed if own_seed is None else own_seed, data, protocol, pooling)
        b = other.score(seed, data, protocol, pooling)
        if a is not None and b is not None:
            pairs.append((a, b))
    if not pairs:
        return None
    of_clips = [(right_clips(a), right_clips(b)) for a, b in pairs]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(pairs), (REPLICATES, len(pairs)))
    mean = float(np.mean([a["score"] - b["score"] for a, b in pairs]))
    scale = np.sqrt(len(pairs) / max(1, len(pairs) - 1))
    gained = [a.astype(np.float64) - b for a, b in of_clips if a is not None and b is not None]
    if len(gained) < len(pairs):
        values = np.array([a["score"] - b["score"] for a, b in pairs])
        return Difference(mean, *interval(mean + scale * (values[drawn].mean(axis=1) - mean)))
    gains = np.stack(gained)  # [seeds, clips]
    clips, total = gains.shape[1], gains.sum(axis=0)
    replicates = np.empty(REPLICATES)
    for i, chosen in enumerate(drawn):
        counts = np.bincount(rng.integers(0, clips, clips), minlength=clips)
        # Sums of whole numbers are exact: bounds of 0 are 0 on every CPU, and the verdict and its digits the same.
        of_all, of_chosen = total @ counts, gains[chosen].sum(axis=0) @ counts
        replicates[i] = (of_all + scale * (of_chosen - of_all)) / (clips * len(pairs))
    return Difference(mean, *interval(replicates))


def column_of(protocol: str, pooling: str) -> str:
    return f"{protocol}, {pooling}"


def table_of(lines: Sequence[Line]) -> tuple[list[str], list[list[object]]]:
    """Heading and cells, one value a cell."""
    protocols = list(dict.fromkeys(p for line in lines for p, _ in line.scores))
    heading = ["setting", "seeds"]
    for protocol in protocols:
        heading += [column_of(protocol, pooling) for pooling in POOLINGS]
        heading += [f"{protocol}: difference (95%)", f"{protocol}: verdict"]
    heading += ["effective rank", "clips/s", "GFLOP a clip", "published, %"]
    rows: list[list[object]] = []
    for line in lines:
        row: list[object] = [line.setting, line.seeds]
        for protocol in protocols:
            row += [line.score(protocol, pooling) for pooling in POOLINGS]
            gap = line.differences.get(protocol)
            row += [None if gap is None else str(gap), None if gap is None else gap.verdict]
        training = line.training
        row += [
            f"{training['effective_rank']:.1f}" if training else None,
            f"{training['clips_per_second']:.0f}" if training else None,
            f"{training['flops_per_clip'] / 1e9:.2f}" if training else None,
            line.published or None,
        ]
        rows.append(row)
    keep = [i for i in range(len(heading)) if i < 2 or any(row[i] is not None for row in rows)]
    return [heading[i] for i in keep], [[row[i] for i in keep] for row in rows]


def markdown(lines: Sequence[Line], columns: Sequence[str] = ()) -> str:
    """
    Args:
        columns: those shown beside the setting, by default all that have a value.

    Raises:
        UserError: a column that has no value or does not exist.
    """
    heading, rows = table_of(lines)
    for column in columns:
        if column not in heading:
            raise UserError(f"no column {column!r} with values: choose from {'; '.join(heading)}")
    shown = [0, *(heading.index(column) for column in columns)] if columns else range(len(heading))
    return markdown_table([heading[i] for i in shown], [[row[i] for i in shown] for row in rows])


def comma_separated(lines: Sequence[Line]) -> str:
    """The table as CSV: means and standard deviations in columns of their own."""
    out = io.StringIO()
    protocols = list(dict.fromkeys(key for line in lines for key in line.scores))
    writer = csv.writer(out, lineterminator="\n")
    heading = ["setting", "seeds"]
    for protocol, pooling in protocols:
        heading += [f"{protocol} {pooling}", f"{protocol} {pooling} std"]
    for protocol in dict.fromkeys(p for p, _ in protocols):
        heading += [f"{protocol} difference", f"{protocol} low", f"{protocol} high", f"{protocol} verdict"]
    writer.writerow([*heading, "effective_rank", "clips_per_second", "flops_per_clip", "steps", "published"])
    for line in lines:
        row: list[object] = [line.setting, line.seeds]
        for key in protocols:
            values = line.scores.get(key, [])
            row += [np.mean(values) if values else "", np.std(values, ddof=1) if len(values) > 1 else ""]
        for protocol in dict.fromkeys(p for p, _ in protocols):
            gap = line.differences.get(protocol)
            row += ["", "", "", ""] if gap is None else [gap.mean, gap.low, gap.high, gap.verdict]
        row += [line.training.get(n, "") for n in ("effective_rank", "clips_per_second", "flops_per_clip", "steps")]
        writer.writerow([*row, line.published])
    return out.getvalue()
