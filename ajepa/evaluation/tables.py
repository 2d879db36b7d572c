"""Markdown tables."""

import re
from collections.abc import Sequence

DASH = "–"  # a cell without a value


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Heading and rows as the lines of a Markdown table: floats with three decimals, None as a dash."""
    lines = [heading, ["---"] * len(heading), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return DASH
    return f"{value:.3f}" if isinstance(value, float) else escape(value)


def escape(text: object) -> str:
    """Text that Markdown shows as it is, in a table too. Underscores within a word need no escape."""
    text = re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", plain(str(text)))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def plain(text: str, longest: int | None = None) -> str:
    """One printable line of any text, its middle left out where it has more than `longest` (over 14) characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if longest is None or len(line) <= longest else f"{line[: longest - 14]}...{line[-11:]}"
