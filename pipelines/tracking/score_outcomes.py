"""Scores of a run, in Markdown, for its description in MLflow. Apart from `outcomes`, for its imports take longer."""

import math
from collections.abc import Sequence

from ajepa.evaluation.comparison import Row, gain_over_random
from ajepa.evaluation.tables import markdown_table
from ajepa.experiments.report import MAIN_POOLING, Line


def probe_outcome(rows: Sequence[Row], best: Row) -> str:
    """The score that is quoted, what it gained, and the table: as narrow as a run's page wants it."""
    gain = gain_over_random(rows, best)
    lines: list[list[object]] = [
        [
            row.features, row.pooling, f"{row.mean:.3f}{'' if math.isnan(row.std) else f' ± {row.std:.3f}'}",
            f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    table = markdown_table(["features", "pooling", best.metric, "95% interval"], lines)
    return f"**{score_of(best)}**{f'; {gain}' if gain else ''}\n\n{table}"


def score_of(best: Row) -> str:
    return f"{best.metric} {best.mean:.3f} with {best.pooling} pooling, chosen on validation clips"


def table_outcome(title: str, lines: Sequence[Line]) -> str:
    """A table of an ablation: of each protocol the score of mean pooling and its difference to the default's; the
    whole table is an artifact."""
    protocols = list(dict.fromkeys(protocol for line in lines for protocol, _ in line.scores))
    heading = ["setting", "seeds", *(name for p in protocols for name in (p, f"{p}: difference (95%)"))]
    rows = [
        [
            line.setting,
            line.seeds,
            *(v for p in protocols for v in (line.score(p, MAIN_POOLING), line.differences.get(p))),
        ]
        for line in lines
    ]
    return f"**{title}**\n\n{markdown_table(heading, rows)}"
