"""What MLflow did not get, kept beside a command's output for the next command there: a folder for each run, with
run.json and the files that its records name."""

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ajepa import storage
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError

UNSENT = "mlflow-unsent"  # of an output
RUN_JSON = "run.json"  # of a folder, written last
RESTORE = "delete it, or restore it from a copy"


@dataclass(kw_only=True)
class Run:
    """What a run is created with."""

    name: str
    experiment: str
    params: dict[str, str]
    tags: dict[str, str]
    run_id: str = ""  # "" until the server has made it
    status: str = "RUNNING"


@dataclass(frozen=True)
class Unsent:
    """What a run's folder holds."""

    run: Run
    records: list[dict[str, Any]]
    histories: bool  # whether the reports of training are sent too


def write_unsent(output: str, unsent: Unsent, spool: Path) -> None:
    """Keep records, and the files they name from the folder `spool`.

    Raises:
        OSError, UserError: the output takes nothing.
    """
    folder = storage.join(output, UNSENT, secrets.token_hex(6))
    for record in unsent.records:
        if "file" in record:
            path = storage.join(folder, record["file"])
            storage.make_folder(path.rpartition("/")[0])
            with storage.atomic_output(path) as stream:
                stream.write(Path(spool, record["file"]).read_bytes())
    storage.make_folder(folder)
    storage.write_text(storage.join(folder, RUN_JSON), json.dumps(dataclasses.asdict(unsent)))


def unsent_folders(output: str) -> list[str]:
    """The finished folders of an output; none where it does not answer."""
    with contextlib.suppress(OSError, UserError):
        names = sorted(storage.contents(storage.join(output, UNSENT)))
        pairs = [name.split("/") for name in names]
        return [storage.join(output, UNSENT, pair[0]) for pair in pairs if pair[1:] == [RUN_JSON]]
    return []


def read_kept(folder: str) -> Unsent:
    """What a folder says.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    where = storage.join(folder, RUN_JSON)
    about = read_document(where, RESTORE)
    with refusing_damage(where, RESTORE):
        require_types(about, run=dict, records=list, histories=bool)
        return Unsent(Run(**about["run"]), about["records"], about["histories"])


def copy_files(folder: str, unsent: Unsent, spool: Path) -> None:
    """Copy the files that its records name to the folder `spool`, and none to elsewhere.

    Raises:
        UserError: a record names a file outside.
        OSError: one cannot be read.
    """
    with refusing_damage(storage.join(folder, RUN_JSON), RESTORE):
        for record in unsent.records:
            if "file" in record:
                target = Path(spool, record["file"]).resolve()
                if not target.is_relative_to(spool.resolve()):
                    raise ValueError(f"{record['file']!r} is no file of this folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                with storage.open_input(storage.join(folder, record["file"])) as stream:
                    target.write_bytes(stream.read())


def delete_unsent(output: str, folders: Sequence[str]) -> None:
    """Delete what has been sent. What cannot be deleted would be sent once more."""
    for folder in folders:
        with contextlib.suppress(OSError, UserError):
            storage.delete(folder)
    if storage.is_local(output):
        with contextlib.suppress(OSError):  # others' are still there
            Path(storage.absolute(output), UNSENT).rmdir()
