"""Which format a list has: its beginning decides, and its name where that leaves it open."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.lists import documents, json_lines
from ajepa.audio.lists.delimited import read_delimited
from ajepa.audio.lists.kaldi import WAV_SCP, read_kaldi
from ajepa.audio.lists.lhotse import is_lhotse, read_lhotse
from ajepa.audio.lists.text import head
from ajepa.audio.lists.user_list import UserList
from ajepa.errors import UserError

KINDS = "a table (CSV, TSV, Parquet), JSON Lines, lhotse's recordings or cuts, Kaldi's wav.scp or AST's JSON"
JSON = (".json", ".jsonl", ".ndjson", ".manifest")


def find_list(path: str) -> str:
    """The file of a list; of a folder of Kaldi's its wav.scp.

    Raises:
        UserError: there is none.
    """
    found = storage.path_type(path)
    if found == "missing":
        raise UserError(f"the manifest {path!r} does not exist ({KINDS} is needed)")
    path = storage.absolute(path)
    if found == "file":
        return path
    if storage.path_type(storage.join(path, WAV_SCP)) != "file":
        raise UserError(f"the manifest {path!r} is a folder without {WAV_SCP}: give the list in it ({KINDS})")
    return storage.join(path, WAV_SCP)


def open_list(path: str) -> UserList:
    """A list in the columns of whoever made it.

    Raises:
        UserError: it is empty, damaged or of no format that is read here.
    """
    name = PurePosixPath(path).name.lower().removesuffix(".gz")
    if name.endswith((".parquet", ".pq")):
        return _parquet(path)
    start = head(path).lstrip()
    if not start:
        raise UserError(f"the manifest {path!r} is empty")
    if name.endswith(".scp"):
        return read_kaldi(path)
    if start.startswith("[") or documents.is_ast(start):
        first: dict[str, Any] = next(documents.entries(path), (0, {}))[1]
        return read_lhotse(path, documents.entries(path)) if is_lhotse(first) else documents.read_document(path)
    if start.startswith("{") or name.endswith(JSON):
        first = next(json_lines.objects(path))[1]
        return read_lhotse(path, json_lines.objects(path)) if is_lhotse(first) else json_lines.read_json_lines(path)
    return read_delimited(path)


def _parquet(path: str) -> UserList:
    """Columns that nobody needs, as sounds themselves, are not read."""
    try:
        with storage.open_input(path) as stream:
            names = pq.read_schema(stream).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error

    def read(columns: Sequence[str]) -> pa.Table:
        try:
            with storage.open_input(path) as stream:
                return pq.ParquetFile(stream).read(columns=list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error

    return UserList(names, read)


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read the manifest {path!r}: {str(error).splitlines()[0]}")
