"""What a probe leaves behind: tables, results.json and pictures in its folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ajepa import storage
from ajepa.evaluation.comparison import Row, comparison_table
from ajepa.evaluation.metrics import class_scores, confusion
from ajepa.evaluation.probe import ProbeResult
from ajepa.evaluation.tables import markdown_table
from ajepa.shards.labels import Labels

OUTPUTS = (
    "table.md", "table.csv", "per_class.md", "per_class.csv", "results.json", "confusion.png", "map.png",
)  # fmt: skip
SMALLEST_MAP = 10  # clips


def write_outputs(
    folder: Path,
    rows: Sequence[Row],
    best: Row,
    vectors: Callable[[], np.ndarray],
    labels: Labels,
    about: dict[str, Any],
    figures: bool = True,
) -> None:
    """Write OUTPUTS into an empty local folder, the pictures only with `figures`; several labels a clip have no
    confusion matrix.

    Args:
        best: the row whose first run is shown class by class and drawn.
        vectors: [n, D] features of that row, one a clip.
        about: what results.json says of encoder, dataset and settings.
    """
    result = best.first
    assert result is not None
    storage.write_text(str(folder / "table.md"), comparison_table(rows) + "\n")
    flat = [row.as_dict() for row in rows]
    table = pd.DataFrame(
        [
            {k: v for k, v in row.items() if k not in ("metrics", "runs", "interval95", "fold_scores")}
            | {"low95": row["interval95"][0], "high95": row["interval95"][1]}
            | row["metrics"]
            for row in flat
        ]
    )
    storage.write_text(str(folder / "table.csv"), table.to_csv(index=False))
    classes = per_class(result, labels.names)
    storage.write_text(str(folder / "per_class.csv"), classes.to_csv(index=False))
    storage.write_text(
        str(folder / "per_class.md"), markdown_table(list(classes.columns), classes.to_numpy(object).tolist()) + "\n"
    )
    results = {"about": about, "rows": flat, "shown": {"pooling": best.pooling, "label": best.runs[0].label},
               "per_class": classes.to_dict("records")}  # fmt: skip
    storage.write_text(str(folder / "results.json"), json.dumps(_plain(results), indent=1))
    if not figures:
        return
    from pipelines.reports.probe_figures import draw_confusion, draw_map  # matplotlib and scikit-learn

    title = f"{about['protocol']} probe, {best.pooling} pooling: {best.metric} {best.runs[0].score:.3f}"
    if not result.multi_label:
        table = confusion(*_labels(result), len(labels.names))
        draw_confusion(table, labels.names, title, folder / "confusion.png")
    if len(result.clips) >= SMALLEST_MAP:
        order = np.sort(result.clips)
        draw_map(
            vectors()[order], labels.table[order], labels.names,
            f"test clips by t-SNE, {best.pooling} pooling", folder / "map.png",
        )  # fmt: skip


def publish(made: Path, output: str) -> None:
    """Copy OUTPUTS to the output of the command; nothing of an earlier probe stays beside them."""
    storage.make_folder(output)
    for name in OUTPUTS:
        where = storage.join(output, name)
        if (made / name).exists():
            with storage.atomic_output(where) as stream:
                stream.write((made / name).read_bytes())
        else:
            storage.delete(where)


def per_class(result: ProbeResult, names: Sequence[str]) -> pd.DataFrame:
    """A line a class with test clips, the worst first: precision, recall, F1 and clips, or average precision."""
    support = result.targets.sum(axis=0)
    if result.multi_label:
        columns: dict[str, Any] = {"average precision": result.average_precision()}
        by = "average precision"
    else:
        scores = class_scores(confusion(*_labels(result), len(names)))
        columns = {"precision": scores.precision, "recall": scores.recall, "F1": scores.f1}
        by = "F1"
    table = pd.DataFrame({"class": names, **columns, "clips": support})
    return table[support > 0].sort_values(by, kind="stable").reset_index(drop=True)


def _labels(result: ProbeResult) -> tuple[np.ndarray, np.ndarray]:
    return result.scores.argmax(axis=1), result.targets.argmax(axis=1)


def _plain(value: Any) -> Any:
    """JSON's own types; NaN becomes null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
