"""Where the sounds of a list lie: paths as people write them become paths that any process opens, and a first look
says whether anything is there."""

import contextlib
import posixpath
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa import storage
from ajepa.audio.decode import AUDIO_EXTENSIONS
from ajepa.errors import UserError

LOOKED_AT = 100  # rows, spread over the list
NEAR = 200  # entries of a folder in which a file that is missing is sought
ASKED = 3  # of those, in stores: each is a request


def locate(uris: pa.ChunkedArray, path: str) -> tuple[pa.ChunkedArray, list[str]]:
    """The uris of the list at `path` as absolute paths or URIs, and remarks.

    Relative ones start at the list's folder; where none of those looked at lies there but some in the current
    directory, all start there.

    Raises:
        UserError: nothing that was looked at exists.
    """
    uris = _each(uris, pc.starts_with(uris, "~/"), storage.absolute)
    # Millions without escapes are cut all at once.
    bare = pc.and_not(pc.starts_with(uris, "file:///"), pc.match_substring_regex(uris, r"[%?#]"))
    uris = pc.if_else(bare, pc.utf8_slice_codeunits(uris, len("file://")), uris)
    uris = _each(uris, pc.starts_with(uris, "file://"), storage.absolute)
    relative = pc.invert(pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/")))
    rows = pa.array(np.unique(np.linspace(0, len(uris) - 1, LOOKED_AT).astype(np.int64)))
    seen = uris.take(rows).to_pylist()
    local = uris.take(rows).filter(relative.take(rows)).to_pylist()
    folder = path.rpartition("/")[0]
    base, here = folder, str(Path.cwd())
    remarks = []
    if local and storage.is_local(path) and not any(_exists(f"{folder}/{uri}") for uri in local):
        found = sum(_exists(f"{here}/{uri}") for uri in local)
        if found:
            base = here
            remarks.append(f"paths of the manifest start in the current directory {here!r}, not beside the manifest")
    placed = pc.if_else(relative, pc.binary_join_element_wise(base, uris, "/"), uris)
    # A store takes ".." for a name like any other.
    dotted = pc.and_(relative, pc.match_substring_regex(uris, r"(^|/)\.\.?(/|$)"))
    placed = _each(placed, dotted, _normal)
    remarks += _look(placed.take(rows).to_pylist(), seen, folder)
    return placed, remarks


def _each(uris: pa.ChunkedArray, where: pa.ChunkedArray, change: Callable[[str], str]) -> pa.ChunkedArray:
    """The uris, those at `where` changed one by one."""
    if not pc.any(where).as_py():
        return uris
    changed = pa.array([change(uri) for uri in uris.filter(where).to_pylist()], uris.type)
    whole = pc.replace_with_mask(uris.combine_chunks(), where.combine_chunks(), changed)
    return pa.chunked_array([whole]) if isinstance(whole, pa.Array) else whole


def _normal(uri: str) -> str:
    scheme, separator, rest = uri.rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(rest)}"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a null
        return False


def _look(uris: list[str], written: list[str], folder: str) -> list[str]:
    """Remarks about the rows that were looked at.

    Raises:
        UserError: none of them exists.
    """
    remote = [uri for uri in uris if not storage.is_local(uri)]
    asked = set(remote[:: max(1, -(-len(remote) // ASKED))])
    looked_at = [(uri, said) for uri, said in zip(uris, written, strict=True) if storage.is_local(uri) or uri in asked]
    problems: list[UserError] = []
    missing = [(uri, said) for uri, said in looked_at if not _there(uri, problems)]
    if not missing:
        return []
    uri, said = missing[0]
    if len(missing) == len(looked_at):
        if problems:
            raise problems[0]
        many = f"none of the {len(missing)} files looked at exists" if len(missing) > 1 else "the file does not exist"
        raise UserError(f"{many}, {uri!r} for one: {_hint(uri, said, folder)}")
    return [
        f"files that do not exist, whose clips become bad rows: {len(missing)} of {len(looked_at)} looked at ({uri!r})"
    ]


def _there(uri: str, problems: list[UserError]) -> bool:
    if storage.is_local(uri):
        return _exists(uri)
    try:
        return storage.path_type(uri) == "file"
    except UserError as error:
        problems.append(error)
        return False


def _hint(uri: str, said: str, folder: str) -> str:
    """What may be wrong with a path that leads nowhere."""
    if "\\" in said:
        return "it was written on Windows; write / for \\"
    if not storage.is_local(uri):
        return "correct the paths of the manifest"
    extension = next((end for end in sorted(AUDIO_EXTENSIONS) if _exists(uri + end)), None)
    if extension is not None:
        return f"with {extension!r} at its end it does; write the whole names"
    if said.startswith("/"):
        parts = said.strip("/").split("/")
        tails = ("/".join(parts[i:]) for i in range(1, len(parts)))
        inner = next((tail for tail in tails if _exists(f"{folder}/{tail}")), None)
        if inner is not None:
            return f"the list is of another machine, but {inner!r} lies beside it; write the paths so"
        lacking = next((str(p) for p in reversed(Path(uri).parents) if not _exists(str(p))), uri)
        return f"there is no {lacking!r} here; is the list of another machine?"
    near = next((place for place in _folders_near(folder) if _exists(f"{place}/{said}")), None)
    if near is not None:
        return f"it lies in {near!r}; put the list, or a link to it, there"
    return f"paths start in the list's folder {folder!r}, or else in the current directory"


def _folders_near(folder: str) -> Iterator[str]:
    """Those in the list's folder and those beside it, some hundreds at most."""
    for place in (Path(folder), Path(folder).parent):
        with contextlib.suppress(OSError):
            yield from (str(path) for path in islice(place.iterdir(), NEAR) if path.is_dir())
