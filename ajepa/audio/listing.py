"""The files of a folder as a source sees them."""

from pathlib import PurePosixPath

from ajepa import storage


def list_names(path: str) -> tuple[list[str], list[str]]:
    """Names of the files below a folder, and a remark about each kind that no source reads: macOS puts resource forks
    beside the files of archives and of foreign disks, named like them but for a prefix."""
    names = [name for name, _ in storage.list_files(path)]
    junk = [name for name in names if _is_resource_fork(name)]
    if not junk:
        return names, []
    left_out = set(junk)
    remark = f"{len(junk)} files of macOS beside the clips left out (__MACOSX, ._*): {junk[0]}"
    return [name for name in names if name not in left_out], [remark]


def _is_resource_fork(name: str) -> bool:
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._")


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8; os.walk hands out the others with surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
