"""Tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A table's lines; floats with three decimals."""
    columns = list(table.columns)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in table.to_dict("records"):
        cells = [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]).replace("|", "/") for c in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
