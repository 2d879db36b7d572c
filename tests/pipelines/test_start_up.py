"""What a process imports before it does its work: seconds each, in every process that a job starts."""

import json
import os
import subprocess
import sys

import pytest
from helpers.faults import PATH, PATIENCE, ROOT
from helpers.imported import among
from helpers.training_state import save_run

from ajepa.experiments.__main__ import main as experiments_main

COMMANDS = sorted(path.stem for path in (ROOT / "pipelines").glob("*.py") if path.stem != "__init__")
SLOW = ["torch", "ray", "mlflow", "pandas", "matplotlib", "numpy", "pyarrow", "scipy", "sklearn", "tqdm", "psutil"]

OPTIONS = """
import contextlib, importlib, io, json, sys
found = {}
for name in sys.argv[1:]:
    command = importlib.import_module(f"pipelines.{name}")
    codes, printed = [], io.StringIO()
    for argv in (["--help"], ["--no-such-option"]):
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                command.parse_args(argv)
            except SystemExit as stop:
                codes.append(stop.code)
    found[name] = [codes, sorted(sys.modules), printed.getvalue()]
print(json.dumps(found))
"""

WORK = """
import json, sys
found = {}
import ajepa
ajepa.load_encoder(sys.argv[1])
found["load_encoder"] = sorted(sys.modules)
import pipelines.rayjobs.data_tasks
found["a task of preprocess"] = sorted(sys.modules)
import pipelines.rayjobs.embed_actors
found["an actor of embed"] = sorted(sys.modules)
import pipelines.rayjobs.predict_actors
found["an actor of predict"] = sorted(sys.modules)
import pipelines.rayjobs.pretrain_worker
found["a worker of pretrain"] = sorted(sys.modules)
sys.path.append("tests")
from helpers.training_state import make_inputs, make_state
from ajepa.training.step import train_step
state = make_state()
train_step(state, make_inputs(state))
found["a step of training"] = sorted(sys.modules)
print(json.dumps(found))
"""


def run(code: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=os.environ | PATH, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.process
def test_options_are_parsed_before_anything_slow_is_imported():
    for name, (codes, modules, printed) in run(OPTIONS, *COMMANDS).items():
        assert codes == [0, 2], (name, printed)
        assert among(modules, [*SLOW, "pipelines.jobs"]) == [], name
        assert "(default:" in printed and "output" in printed.lower(), name


@pytest.mark.process
def test_workers_import_what_they_use(tmp_path, small_dataset):
    save_run(tmp_path, small_dataset, 1)
    found = run(WORK, str(tmp_path))
    training = ["ajepa.training", "ajepa.evaluation", "ajepa.finetuning"]
    assert among(found["load_encoder"], ["scipy", "pandas", "pyarrow.dataset", "pipelines", *training]) == []
    assert among(found["an actor of embed"], ["scipy", *training]) == []
    for name, modules in found.items():
        unused = [
            "ray",
            "mlflow",
            "pandas",
            "matplotlib",
            "sklearn",
            "tyro",
            "pipelines.jobs",
            "torch._dynamo",
            "sympy",
        ]
        assert among(modules, unused) == [], name


def test_threads_that_wait_sleep_in_the_command_without_ray_too(monkeypatch, tmp_path, capsys):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit):
        experiments_main(["predictor", "--no-such-option"])
    assert experiments_main(["predictor", "--data", str(tmp_path), "--output", "s3://bucket/x", "--threads", "2"]) == 2
    assert [os.environ.get(name) for name in names] == ["PASSIVE", "1000", "0", "2"]
    assert "--output is a local folder" in capsys.readouterr().err
