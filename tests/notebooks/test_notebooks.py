"""Every notebook runs from top to bottom, and its file holds what that gives."""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks import execute

NAMES = {  # and what each has to show: how often of each kind
    "01_sounds_to_shards": {"image/png": 2, "audio": 1, "table": 3, "text": 2},
    "02_masks_and_objective": {"image/png": 5, "table": 1},
    "03_pretrain_and_watch": {"image/png": 2, "text": 4},
    "04_embeddings": {"image/png": 3, "audio": 1, "table": 2},
    "05_tables": {"image/png": 3, "table": 1},
    "06_cluster": {"image/png": 1, "table": 1, "text": 3},
}
WITH_RAY = {"01_sounds_to_shards", "03_pretrain_and_watch", "06_cluster"}
EACH = [
    pytest.param(name, marks=[pytest.mark.ray] if name in WITH_RAY else [pytest.mark.xdist_group("notebooks")])
    for name in NAMES
]
SECONDS = 600  # until a notebook counts as hung; quiet, each takes less than two minutes


@pytest.fixture
def ray_folder(monkeypatch):
    """The folder of the Rays that a notebook starts. Paths of sockets are short."""
    folder = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_these_are_all_notebooks():
    assert [path.stem for path in execute.paths()] == list(NAMES)


@pytest.mark.process
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("name", EACH)
def test_a_notebook_runs_and_shows_what_its_file_holds(name, ray_folder, mlflow_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    path = execute.FOLDER / f"{name}.ipynb"
    done = execute.executed(path)
    assert execute.kinds(done) == execute.kinds(nbformat.read(path, as_version=4))
    assert done.metadata == nbformat.read(path, as_version=4).metadata
    if name == "03_pretrain_and_watch":
        healthy, collapsed = (execute.shown(done, f"--output runs/{run} ") for run in ("healthy", "collapsed"))
        assert "collapsing" not in healthy and "collapsing" in collapsed and "exit code 2" in collapsed
    assert not (ray_folder / "ray" / "ray_current_cluster").exists()
    left = [process for process in psutil.process_iter(["cmdline"]) if str(ray_folder) in str(process.info["cmdline"])]
    psutil.wait_procs(left, timeout=30)
    assert [process.info["cmdline"] for process in left if process.is_running()] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_its_code_gave(name):
    path = execute.FOLDER / f"{name}.ipynb"
    assert execute.faults(path) == []
    kinds = [kind for cell in execute.kinds(nbformat.read(path, as_version=4)) for kind in cell]
    for kind, count in NAMES[name].items():
        assert kinds.count(kind) >= count, kind


def write(path: Path, *cells: str) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A notebook with a picture and the output of a command, as `make notebooks` writes it. Read only."""
    path = tmp_path_factory.mktemp("good") / "good.ipynb"
    picture = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    command = "%%bash\npython -c 'import sys; print(sys.executable == \"" + sys.executable + "\")'"
    nbformat.write(execute.executed(write(path, picture, command)), path)
    return path


@pytest.mark.process
def test_a_good_notebook_has_no_faults_but_what_it_names(good):
    done = nbformat.read(good, as_version=4)
    assert execute.kinds(done) == [{"image/png", "text/plain"}, {"text"}]
    assert execute.shown(done, "%%bash") == "True\n"


@pytest.mark.process
@pytest.mark.parametrize(
    "cell", ["1 / 0", "%%bash\nexit 2", "%%bash\npython -m pipelines.probe --encoder nowhere --data x"]
)
def test_a_cell_or_a_command_that_fails_is_an_error(cell, tmp_path):
    with pytest.raises(CellExecutionError):
        execute.executed(write(tmp_path / "bad.ipynb", "print(1)", cell))


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda nb: nb.cells[0].update(source="plt.plot([3, 4]);"), "not of its code"),
        (lambda nb: nb.cells[1].update(outputs=[], execution_count=None), "not all cells were executed"),
        (lambda nb: nb.cells[1].outputs[0].update(text="in /home/me/runs\n"), "machine: /home/me/runs"),
        (lambda nb: nb.cells[1].outputs[0].update(text="x" * execute.MAX_BYTES), "more than 300000"),
        (lambda nb: nb.metadata.update(widgets={}), "metadata of an editor"),
        (lambda nb: nb.cells[1].update(outputs=[nbformat.v4.new_output("error", ename="OSError")]), "failed: OSError"),
    ],
    ids=["code", "not executed", "path", "size", "metadata", "error"],
)  # fmt: skip
def test_a_fault_of_a_file_is_named(change, fault, good, tmp_path):
    notebook = nbformat.read(good, as_version=4)
    change(notebook)
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    assert any(fault in line for line in execute.faults(tmp_path / "changed.ipynb"))


def test_an_unknown_name_is_one_line(capsys):
    assert execute.main(["07_none"]) == 2
    assert "error: no notebook '07_none'" in capsys.readouterr().err
