"""Run notebooks from top to bottom: `python notebooks/execute.py [NAME...]` writes their outputs in place, all of them
without a name. That is `make notebooks`; the tests run them with the same functions and look at what the files hold."""

import base64
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
CELL_SECONDS = 600  # until a cell counts as hung
MAX_BYTES = 300_000  # of a file with its outputs
EXECUTED = "executed_code"  # in a file's metadata: the digest of the code that its outputs are of
SCRATCH = "scratch"  # how a notebook's temporary folder is written in outputs
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:tmp|home|root|work|Users|mnt|opt|usr|var|workspace)/\S*")
DATA = re.compile(r"base64,[\w+/=]+")


def paths() -> list[Path]:
    """The notebooks in their order."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path) -> NotebookNode:
    """A notebook with the outputs of a fresh kernel, as it is to be written.

    It runs in the folder of the notebooks; its temporary files lie in a folder that is deleted afterwards. `python` in
    its commands is this one, and finds this checkout.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed, or a command of it.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {
            "TMPDIR": scratch,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(FOLDER)}},
            extra_arguments=["--HistoryManager.enabled=False"],  # its database is not for two kernels at once
            record_timing=False,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            coalesce_streams=True,
        )
        client.execute(env=environment)
        folder = re.compile(re.escape(scratch) + r"(/[\w.-]+)?")
    for output in outputs(notebook):
        if output.output_type == "stream":
            output.text = folder.sub(SCRATCH, output.text)
        for kind, value in output.get("data", {}).items():
            if kind == "image/png":
                output.data[kind] = smaller(value)
            elif isinstance(value, str):
                output.data[kind] = folder.sub(SCRATCH, value)
    notebook.metadata = nbformat.from_dict(METADATA | {EXECUTED: code_digest(notebook)})
    return notebook


def smaller(picture: str) -> str:
    """A PNG in base64 with 256 colours: a third of the bytes, and no difference to the eye."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in code(notebook):
        yield from cell.outputs


def code_digest(notebook: NotebookNode) -> str:
    """Of all code cells in their order."""
    return hashlib.blake2b("\0".join(cell.source for cell in code(notebook)).encode(), digest_size=16).hexdigest()


def kinds(notebook: NotebookNode) -> list[set[str]]:
    """What each code cell shows: media types, "text" for what was printed, "table" and "audio" for such HTML."""
    found = []
    for cell in code(notebook):
        own: set[str] = set()
        for output in cell.outputs:
            own |= {"text"} if output.output_type == "stream" else set(output.get("data", {}))
            html = output.get("data", {}).get("text/html", "")
            own |= {name for name in ("table", "audio") if f"<{name}" in html}
        found.append(own)
    return found


def shown(notebook: NotebookNode, source: str) -> str:
    """What the cells printed whose code contains `source`."""
    return "".join(
        output.get("text", "") for cell in code(notebook) if source in cell.source for output in cell.outputs
    )


def text(notebook: NotebookNode) -> str:
    """Sources and all outputs that are text, without the data of pictures and sounds."""
    parts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        parts += [output.get("text", ""), *output.get("traceback", [])]
        parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return DATA.sub("", "\n".join(parts))


def faults(path: Path) -> list[str]:
    """What is wrong with a notebook's file as it is kept, a line each; [] where nothing is."""
    notebook = nbformat.read(path, as_version=4)
    found = []
    if notebook.metadata.get(EXECUTED) != code_digest(notebook):
        found.append("its outputs are not of its code: run `make notebooks`")
    if [cell.execution_count for cell in code(notebook)] != list(range(1, len(code(notebook)) + 1)):
        found.append("not all cells were executed in their order: run `make notebooks`")
    if {name: value for name, value in notebook.metadata.items() if name != EXECUTED} != METADATA:
        found.append("metadata of an editor: run `make notebooks`")
    found += [f"a cell failed: {output.ename}" for output in outputs(notebook) if output.output_type == "error"]
    found += [f"a path of a machine: {each}" for each in MACHINE_PATH.findall(text(notebook))]
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"{size} bytes, more than {MAX_BYTES}: smaller pictures or shorter sounds")
    return found


def main(names: Sequence[str]) -> int:
    """Returns the exit code: 2 for a name that there is not, 1 where a file has a fault."""
    known = {path.stem: path for path in paths()}
    if unknown := [name for name in names if Path(name).stem not in known]:
        print(f"error: no notebook {unknown[0]!r}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = False
    for path in [known[Path(name).stem] for name in names] or known.values():
        begun = time.perf_counter()
        nbformat.write(executed(path), path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)
        for fault in faults(path):
            print(f"{path.name}: {fault}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
