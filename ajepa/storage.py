"""Paths that are local or any URI pyarrow.fs reads (s3://, gs://, file://): resolve, list, read, write atomically."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from ajepa.errors import UserError


def is_uri(path: str) -> bool:
    return "://" in path


def absolute(path: str) -> str:
    """The path as any process on any host reads it: URIs unchanged, local paths absolute."""
    return path if is_uri(path) else os.path.abspath(Path(path).expanduser())  # noqa: PTH100 (removes "..")


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """(filesystem, path within it). UserError for a scheme pyarrow cannot read."""
    if not is_uri(path):
        return pafs.LocalFileSystem(), absolute(path)
    if urlsplit(path).scheme == "file":
        return pafs.LocalFileSystem(), unquote(urlsplit(path).path)
    try:
        return pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, ValueError, NotImplementedError) as error:
        scheme = urlsplit(path).scheme
        raise UserError(
            f"cannot read {path!r}: the scheme {scheme}:// is not supported here "
            "(use a local path, file://, s3:// or gs://)"
        ) from error


def join(path: str, *parts: str) -> str:
    return "/".join([path.rstrip("/"), *parts])


def kind(path: str) -> str:
    """ "file", "folder" or "missing"."""
    filesystem, inner = resolve(path)
    try:
        info = filesystem.get_file_info(inner)
    except OSError as error:
        raise UserError(f"cannot reach {path!r}: {str(error).splitlines()[0]}") from error
    if info.type == pafs.FileType.Directory:
        return "folder"
    return "missing" if info.type == pafs.FileType.NotFound else "file"


def require_folder(path: str, what: str) -> None:
    found = kind(path)
    if found == "missing":
        raise UserError(f"{what} {path!r} does not exist")
    if found == "file":
        raise UserError(f"{what} {path!r} is a file, a folder is needed")


def list_files(path: str) -> list[tuple[str, int]]:
    """(path relative to `path`, size in bytes) of every file below a folder, sorted. Symbolic links to
    folders are followed once each, so a loop of links ends."""
    filesystem, inner = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return sorted(_walk_local(inner))
    selector = pafs.FileSelector(inner, recursive=True, allow_not_found=True)
    root = inner.rstrip("/") + "/"
    infos = filesystem.get_file_info(selector)
    return sorted((i.path.removeprefix(root), i.size) for i in infos if i.type == pafs.FileType.File)


def _walk_local(root: str) -> Iterator[tuple[str, int]]:
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        info = Path(folder).stat()
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders.sort()  # which of two links to one folder is listed must not depend on the filesystem
        for name in files:
            full = Path(folder, name)
            with contextlib.suppress(OSError):  # a dangling link, or one to itself
                yield str(full.relative_to(root)), full.stat().st_size


def open_input(path: str) -> pa.NativeFile:
    """A seekable input stream. OSError (FileNotFoundError included) where it cannot be read."""
    filesystem, inner = resolve(path)
    return filesystem.open_input_file(inner)


def read_text(path: str) -> str:
    with open_input(path) as stream:
        return stream.read().decode()


def make_folder(path: str) -> None:
    filesystem, inner = resolve(path)
    filesystem.create_dir(inner, recursive=True)


def delete(path: str) -> None:
    """Delete a file or a whole folder if it is there."""
    filesystem, inner = resolve(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.Directory:
        filesystem.delete_dir(inner)
    elif info.type != pafs.FileType.NotFound:
        filesystem.delete_file(inner)


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[Any]:
    """An output stream whose file appears under `path` only when the block ends without an error.

    Locally a temporary file in the same folder is synced and renamed; an object store shows an
    object only once its upload is complete, and the upload is aborted on an error.
    """
    filesystem, inner = resolve(path)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        stream = filesystem.open_output_stream(inner)
        try:
            yield stream
        except BaseException:
            abort = getattr(stream, "abort", None)
            if abort is not None:
                abort()
            raise
        stream.close()
        return
    temporary = Path(f"{inner}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(inner)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str, text: str) -> None:
    with atomic_output(path) as stream:
        stream.write(text.encode())
