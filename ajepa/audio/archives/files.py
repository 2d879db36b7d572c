"""The files of a source that is made of containers: one file, all of a folder, or those that fit a pattern."""

import fnmatch
from collections.abc import Sequence

from ajepa import storage
from ajepa.audio.listing import is_text
from ajepa.errors import UserError


def find_files(path: str, endings: Sequence[str], what: str) -> tuple[str, list[str]]:
    """The folder, and the paths below it, sorted, of the files that end in one of `endings`.

    Args:
        path: a file, a folder, or a pattern with * ? [] in its last parts.
        what: they are, for messages: "Parquet files".

    Raises:
        UserError: there are none.
    """
    path = storage.absolute(path)
    folder, found = _find(path, endings, what)
    odd = [name for name in found if not is_text(name)]
    if odd:
        raise UserError(f"the name of {odd[0]!a} in {folder!r} is not UTF-8: rename it")
    return folder, found


def _find(path: str, endings: Sequence[str], what: str) -> tuple[str, list[str]]:
    kind = storage.path_type(path)
    if kind == "file":
        folder, _, name = path.rpartition("/")
        return folder, [name]
    if kind == "folder":
        folder, found = path, [name for name, _ in storage.list_files(path)]
        found = [name for name in found if name.lower().endswith(tuple(endings))]
        if not found:
            raise UserError(f"{path!r} holds no {what} ({' '.join(endings)})")
        return folder, found
    parts = path.split("/")
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if fixed == len(parts):
        raise UserError(f"{path!r} does not exist (a file, a folder or a pattern with * is needed)")
    folder, pattern = "/".join(parts[:fixed]) or "/", "/".join(parts[fixed:])
    storage.require_folder(folder, f"the folder of the pattern {path!r}:")
    found = [name for name, _ in storage.list_files(folder) if _fits(name, pattern)]
    if not found:
        raise UserError(f"no file fits the pattern {path!r}")
    return folder, found


def _fits(name: str, pattern: str) -> bool:
    """Part by part, so that * stays inside a folder; ** is any number of folders."""
    return _fit_parts(name.split("/"), pattern.split("/"))


def _fit_parts(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fit_parts(names[i:], patterns[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _fit_parts(names[1:], patterns[1:])
