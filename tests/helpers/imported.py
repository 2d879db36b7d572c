"""What the processes of a run have imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def among(modules: list[str], names: list[str]) -> list[str]:
    """Which of the names, or packages of such names, were imported."""
    return sorted({name for name in names for module in modules if module == name or module.startswith(f"{name}.")})


def listing(fit: Callable[..., None], folder: Path) -> Callable[..., None]:
    """`pipelines.rayjobs.train_job.fit` whose controller and workers write what they have imported: see `imported`."""
    # What is nested is pickled by value: other processes cannot import this file.
    written = str(folder)

    def write(name: str) -> None:
        import json
        import sys
        from pathlib import Path

        Path(written, f"{name}.modules").write_text(json.dumps(sorted(sys.modules)))

    class Recorder:
        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            write("controller")

    def fit_and_list(job: Callable[[Any], None], output: str, workers: Any, callbacks: list[Any]) -> None:
        def job_then_list(worker: Any) -> None:
            job(worker)
            write("worker")

        fit(job_then_list, output, workers, [Recorder(), *callbacks])

    return fit_and_list


def imported(folder: Path, name: str) -> list[str]:
    """Modules of the "controller" or a "worker" at the end of a run."""
    return json.loads((folder / f"{name}.modules").read_text())
