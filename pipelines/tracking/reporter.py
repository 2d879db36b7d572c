"""Reports of a training run: every one goes to the history file, from which the driver sends it to MLflow, and to the
terminal, once.

A run of several trainings reports each under its own "part": a folder with a history, and a prefix in MLflow.
"""

import errno
import time
from typing import Any

from ajepa import storage
from ajepa.errors import UserError
from ajepa.training.run_folder import append_history
from pipelines.cli.progress import span
from pipelines.tracking.history_tail import is_due, move_to_history, read_tail, write_tail

MEASURED = ("effective_rank", "epoch")  # in reports of evaluations


class Reporter:
    """Controller side: receives every report of all workers. A report that was received is stored, whatever ends this
    process next."""

    def __init__(self, output: str, quiet: bool = False) -> None:
        self.output, self.quiet = output, quiet
        self.tails: dict[str, list[dict[str, Any]]] = {}  # in an object store: by folder, not yet in the history
        self.lines: dict[str, int] = {}  # of the histories there, once they were written

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        report = merge(metrics) | {"time": round(time.time(), 3)}
        try:
            self._write(report)
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise UserError(
                f"cannot write to {self.output!r}: {reason}. Make room or fix the cause, then run the same command "
                "again"
            ) from error
        if not self.quiet:
            print(line(report), flush=True)

    def _write(self, report: dict[str, Any]) -> None:
        folder = self.output
        if part := report.get("part", ""):
            folder = storage.join(folder, part)
            storage.make_folder(folder)
        if not storage.is_uri(self.output):
            append_history(folder, [report])
            return
        if folder not in self.tails:  # a controller before this one may have left some
            self.tails[folder] = read_tail(folder)
        tail = self.tails[folder]
        tail.append(report)
        if is_due(len(tail), self.lines.get(folder, 0), any(name in report for name in MEASURED)):
            self.lines[folder] = move_to_history(folder, tail)
            tail.clear()
        else:
            write_tail(folder, tail)


def merge(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of all workers': rank 0 measures what is measured once; what each measured on its own clips, which
    "averaged" names, is averaged by their share of the batch."""
    shares = [m.get("share", 0.0) for m in metrics]
    averaged = {
        name: sum(m[name] * share for m, share in zip(metrics, shares, strict=True)) / sum(shares)
        for name in metrics[0].get("averaged", ())
    }
    return {k: v for k, v in (metrics[0] | averaged).items() if k not in ("share", "averaged")}


def line(report: dict[str, Any]) -> str:
    """What the terminal shows of a report."""
    parts = [report["part"]] if "part" in report else []
    parts += [f"step {report['step']}/{report['total_steps']}"]
    if "loss" in report:
        left = (report["total_steps"] - report["step"]) * report["seconds_per_step"]
        parts += [
            f"loss {report['loss']:.4f}",
            f"{report['clips_per_second']:.0f} clips/s",
            *([f"MFU {report['mfu']:.2f}"] if "mfu" in report else []),
            f"waiting {report['data_wait'] + report['checkpoint_wait']:.0%}",
            f"{span(left)} left",
        ]
    parts += [f"{k.replace('_', ' ')} {v:.3f}" for k, v in report.items() if k.startswith("validation_")]
    if "online_linear_mel" in report:
        parts.append(
            f"online probe: random init {report['online_linear_random']:.2f}, log-mel {report['online_linear_mel']:.2f}"
        )
    if "verdict" in report:
        parts.append(report["verdict"])
    return "  ".join(parts)
