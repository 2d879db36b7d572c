"""Trials on a machine with two GPUs, as Ray is told: each on GPUs of its own, several on one where they ask for a part,
one that fails fails alone, and a table whose command is killed goes on. No password of the tracking server is in what
Ray Tune writes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faults import PATH, PATIENCE, ROOT, wait_for, wait_for_all_of
from helpers.runs import TINY_MODEL

from ajepa.experiments.results import read_results

pytestmark = [pytest.mark.ray, pytest.mark.process, pytest.mark.cluster]

START = """
import sys
from pathlib import Path
import ray
from pipelines.ablate import AblateArgs
from pipelines.jobs import ablate

data, output, notes, first, *more = sys.argv[1:]
ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
"""

PLACED = (
    START
    + """
def run_trial(params, job, trials, uri):
    import json, os, time
    from pathlib import Path
    from ajepa.experiments.trial import write_result
    from ajepa.experiments.runner import trial_folder
    assert "hunter2" in uri
    trial = trials[params["trial"]]
    if trial.kind != "pretrained":
        return
    ratio = f"{trial.config.mask.mask_ratio:g}"
    running = Path(notes, f"{ratio}.running")
    running.touch()
    seen = len(list(Path(notes).glob("*.running")))
    Path(notes, f"{ratio}.json").write_text(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], seen]))
    while len(list(Path(notes).glob("*.json"))) < int(first):  # the first ones meet
        time.sleep(0.05)
    running.unlink()
    if ratio == "0.8":
        raise ValueError("its loss is not finite")

ablate.run_trial = run_trial
ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, logging_level="WARNING")
args = AblateArgs(tables=("masking_ratio",), values=("0.5", "0.6", "0.7", "0.8"), data=data, output=output, seeds=1,
                  mlflow_uri="http://ann:hunter2@127.0.0.1:9", gpus_per_trial=float(more[0]) if more else None)
try:
    ablate.main(args)
except ablate.UserError as error:
    print("error:", error)
"""
)

KILLED = (
    START
    + """
def run_trial(params, job, trials, uri):
    import time
    from pathlib import Path
    from pipelines.jobs import ablate
    name = f"{trials[params['trial']].kind}-{trials[params['trial']].config.mask.mask_ratio:g}"
    Path(notes, name).touch()
    while name == "pretrained-0.6" and Path(notes, "hold").exists():
        time.sleep(0.05)
    ablate.run_trial(params, job, trials, uri)

ablate.run_trial = run_trial
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="WARNING")
ablate.main(AblateArgs(tables=("masking_ratio",), values=("0.5", "0.6"), data=data, output=output, seeds=1,
                       config=first, protocol=("knn",), mlflow_uri=more[0]))
"""
)


def start(code: str, log: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | PATH
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", code, *words], cwd=ROOT, env=environment, stdout=stream, stderr=stream, text=True,
            start_new_session=True,
        )  # fmt: skip


def finish(code: str, log: Path, *words: str) -> tuple[int, str]:
    """(exit code, what it printed) of a whole command; its Ray is gone, too."""
    running = start(code, log, *words)
    returned = running.wait(PATIENCE)
    wait_for_all_of(running.pid)
    return returned, log.read_text()


@pytest.mark.parametrize(("share", "meet"), [(None, 2), ("0.5", 4)])
def test_trials_have_the_gpus_they_ask_for_and_one_fails_alone(small_dataset, tmp_path, share, meet):
    output, notes = tmp_path / "tables", tmp_path / "notes"
    notes.mkdir()
    more = () if share is None else (share,)
    _, printed = finish(PLACED, tmp_path / "log", small_dataset.path, str(output), str(notes), str(meet), *more)
    assert "error: 1 of 6 trials failed" in printed
    assert "ValueError: its loss is not finite" in printed
    found = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
    assert len(found) == 4 and {devices for devices, _ in found} == {"0", "1"}
    assert max(running for _, running in found) == meet
    assert "hunter2" not in printed
    written = [path for path in output.rglob("*") if path.is_file()]
    assert written and [path for path in written if b"hunter2" in path.read_bytes()] == []


def test_a_table_whose_command_is_killed_goes_on(small_dataset, tmp_path, mlflow_uri):
    output, notes, config = tmp_path / "tables", tmp_path / "notes", tmp_path / "config.json"
    notes.mkdir()
    (notes / "hold").touch()
    train = {"batch_size": 8, "max_steps": 3, "log_every": 1}
    config.write_text(json.dumps({"model": dataclasses.asdict(TINY_MODEL), "train": train}))
    words = (small_dataset.path, str(output), str(notes), str(config), mlflow_uri)
    running = start(KILLED, tmp_path / "killed.log", *words)
    wait_for(lambda: (notes / "pretrained-0.6").exists(), "the second training", lambda: running.poll() is None)
    os.kill(running.pid, signal.SIGKILL)
    running.wait(PATIENCE)
    (first,) = output.glob("trials/jepa-multiblock-0.5*/result.json")
    before = first.stat().st_mtime_ns
    for name in ("hold", "pretrained-0.5"):
        (notes / name).unlink()
    returned, printed = finish(KILLED, tmp_path / "log", *words)
    assert returned == 0, printed
    assert first.stat().st_mtime_ns == before and not (notes / "pretrained-0.5").exists()
    assert len(read_results(str(output / "results"))) == 4
    table = Path(output, "tables/masking_ratio-shards.md").read_text()
    assert all(f"| {setting} | 1 |" in table for setting in ("0.5", "0.6", "random init", "log-mel statistics"))
    wait_for_all_of(running.pid)  # the killed one's Ray: it ends after a minute, the command does not wait for it
