"""What came out of a run, in Markdown, for its description in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Any

from ajepa.evaluation.tables import markdown_table
from ajepa.shards.dataset import ShardDataset
from ajepa.training.diagnostics import PAGE, latest

MEASURED = {
    "loss": "loss",
    "effective_rank": "effective rank of clips",
    "clip_cosine": "mean cosine between clips",
    "online_linear": "online probe, linear",
    "online_knn": "online probe, kNN",
    "clips_per_second": "clips/s",
}  # of a training, by their names in its history


def training_outcome(history: Sequence[Mapping[str, Any]]) -> str:
    """Verdict, steps, and how the first and the newest measurements compare.

    Args:
        history: reports in order of steps, at least one.
    """
    verdict = next((report["verdict"] for report in reversed(history) if "verdict" in report), "not measured")
    state, reason = verdict_parts(verdict)
    lines: list[list[object]] = []
    for name, words in MEASURED.items():
        first, last = latest(history[::-1], name), latest(history, name)
        if first is not None and last is not None:
            lines.append([words, f"{first:.4g}", f"{last:.4g}"])
    table = f"\n\n{markdown_table(['', 'first', 'last'], lines)}" if lines else ""
    done = f"step {history[-1]['step']} of {history[-1]['total_steps']}"
    return f"**{state}**, {done}" + (f": {reason}" if reason else "") + table


def verdict_parts(verdict: str) -> tuple[str, str]:
    """(state, reason) of a verdict as reports hold it: "reason: state", and where to read more if it collapses."""
    reason, _, state = verdict.removesuffix(f"; {PAGE}").rpartition(": ")
    return state, reason


def dataset_outcome(dataset: ShardDataset, notes: Sequence[str]) -> str:
    """Counts of clips, failures by stage and hours, and what was noticed."""
    stages = sorted(dataset.info["counts"]["bad_by_stage"].items())
    bad = f" ({', '.join(f'{count} {stage}' for stage, count in stages)})" if stages else ""
    text = (
        f"**{dataset.num_clips} clips** of {dataset.hours:.2f} h in {len(dataset.shards)} shards, "
        f"{dataset.num_failed} bad{bad}, {len(dataset.label_names)} labels, content hash `{dataset.content_hash}`"
    )
    return "\n".join([text, *(["", *(f"- {note}" for note in notes)] if notes else [])])
