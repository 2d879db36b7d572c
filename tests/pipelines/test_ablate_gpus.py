"""Trials of an ablation on a machine with two GPUs, as Ray is told: two at a time, each with a GPU of its own. And no
password of the tracking server in what Ray Tune writes."""

import json
import os
import subprocess
import sys

import pytest
from helpers.faults import PATH, PATIENCE, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.process, pytest.mark.cluster]

ABLATE = """
import json, os, sys, time
from pathlib import Path
import ray
from pipelines.ablate import AblateArgs
from pipelines.jobs import ablate

data, output, notes = sys.argv[1:]

def run_trial(params, uri):
    import json, os, time
    from pathlib import Path
    from ray import tune
    assert "hunter2" in uri
    running = Path(notes, f"{params['value']}.running")
    running.touch()
    seen = len(list(Path(notes).glob("*.running")))
    Path(notes, f"{params['value']}.json").write_text(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], seen]))
    while len(list(Path(notes).glob("*.json"))) < 2:  # the first two meet
        time.sleep(0.05)
    running.unlink()
    tune.report({"finished": True})

ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
ablate.run_trial = run_trial
ablate.summarise = lambda trials, values: [trial["value"] for trial in trials]
ablate.write_report = lambda *args: None
ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, logging_level="WARNING")
args = AblateArgs(ablation="masking_ratio", values=("0.5", "0.6", "0.7", "0.8"), data=data, output=output,
                  mlflow_uri="http://ann:hunter2@127.0.0.1:9")
print("trials:", sorted(ablate.main(args)))
"""


def test_two_trials_run_at_a_time_each_on_a_gpu_of_its_own(small_dataset, tmp_path):
    output, notes = tmp_path / "ablation", tmp_path / "notes"
    notes.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | PATH
    done = subprocess.run(
        [sys.executable, "-c", ABLATE, small_dataset.path, str(output), str(notes)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert "trials: ['0.5', '0.6', '0.7', '0.8']" in done.stdout, done.stderr
    found = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
    assert {devices for devices, _ in found} == {"0", "1"}
    assert all(1 <= running <= 2 for _, running in found)
    assert "hunter2" not in done.stdout + done.stderr
    written = [path for path in output.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if b"hunter2" in path.read_bytes()] == []
