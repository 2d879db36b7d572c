"""Paths that are local or any URI pyarrow.fs reads (s3://, gs://, file://): resolve, list, read, write atomically."""

import contextlib
import functools
import mmap
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as pafs

from ajepa.errors import UserError
from ajepa.retries import UnreachableError, again_and_again

T = TypeVar("T")

OBJECT_STORES = ("s3", "gs")
S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # variables that pyarrow reads for a URI, in this order
S3_TRIES = 4  # of a request, by the S3 client itself: Ctrl-C waits for them, and an unanswered one takes 3 s
GS_SECONDS = 10  # for which the client of gs:// itself asks again; it would for 15 minutes, also without credentials
TEMPORARY = re.compile(r"\.[0-9a-f]+\.tmp$")  # of a file that is being written; a process that was killed leaves it
LOCK = ".lock-"  # begins the name of a lock file, which says who writes to a folder


def is_uri(path: str) -> bool:
    return "://" in path


def is_local(path: str) -> bool:
    return not is_uri(path) or path.startswith("file:")


def absolute(path: str) -> str:
    """The path as any process on any host reads it: local ones absolute (file:// too), other URIs unchanged."""
    if not is_local(path):
        return path
    local = unquote(urlsplit(path).path) if is_uri(path) else str(Path(path).expanduser())
    if os.name == "nt":  # file:///C:/sounds
        local = re.sub(r"^/(?=[A-Za-z]:)", "", local)
    return os.path.abspath(local)  # noqa: PTH100 (removes "..")


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """(filesystem, path within it). The key of an object is used unchanged, without escapes.

    Raises:
        UserError: a scheme pyarrow cannot read, or a URI with options.
    """
    scheme, _, rest = path.partition("://")
    if is_local(path):
        return pafs.LocalFileSystem(), absolute(path)
    if scheme not in OBJECT_STORES:
        if scheme == "hf":  # pyarrow would ask the network by another package
            raise UserError(f"cannot read {path!r}: hf:// is not supported here (use a local path, s3:// or gs://)")
        return _filesystem(path)
    bucket = rest.partition("/")[0]
    if "?" in bucket or re.search(r"\?\w+=", rest):
        raise UserError(f"{path!r}: options in a URI are not read; set AWS_ENDPOINT_URL and AWS_DEFAULT_REGION instead")
    limit = f"?retry_limit_seconds={GS_SECONDS}" if scheme == "gs" else ""
    return _filesystem(f"{scheme}://{bucket}{limit}")[0], rest


@functools.lru_cache(maxsize=64)
def _filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """One client a bucket: making one may ask the store for its region."""
    try:
        found, inner = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, ValueError, NotImplementedError) as error:
        raise UserError(
            f"cannot read {uri!r}: the scheme {urlsplit(uri).scheme}:// is not supported here "
            f"(use a local path, file://, s3:// or gs://): {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(found, pafs.S3FileSystem):
        return found, inner
    # A client made from a URI asks up to 30 times, 99 s of a server that never answers.
    strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=S3_TRIES)
    endpoint = next((os.environ[name] for name in S3_ENDPOINTS if name in os.environ), None)
    return pafs.S3FileSystem(region=found.region, endpoint_override=endpoint, retry_strategy=strategy), inner


def with_retries(path: str, work: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Do `work` on `path`, again after a while where a store does not answer: see `again_and_again`.

    Raises:
        UnreachableError: it never did.
        OSError: what is wrong with a local file or with the object itself.
    """
    if is_local(path):
        return work()
    scheme, _, rest = path.partition("://")
    return again_and_again(f"{scheme}://{rest.partition('/')[0]}", path, work, stopped)


def join(path: str, *parts: str) -> str:
    return "/".join([path.rstrip("/"), *parts])


def path_type(path: str) -> str:
    """ "file", "folder" or "missing"."""
    try:
        filesystem, inner = resolve(path)
        info = with_retries(path, lambda: filesystem.get_file_info(inner))
    except UnreachableError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot reach {path!r}: {str(error).splitlines()[0]}") from error
    if info.type == pafs.FileType.Directory:
        return "folder"
    return "missing" if info.type == pafs.FileType.NotFound else "file"


def require_folder(path: str, what: str) -> None:
    found = path_type(path)
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
    infos = with_retries(path, lambda: filesystem.get_file_info(selector))
    return sorted((i.path.removeprefix(root), i.size) for i in infos if i.type == pafs.FileType.File)


def list_folder(path: str) -> list[tuple[str, float]]:
    """(name, time of modification in seconds since the epoch) of the files in a folder, not of those below."""
    filesystem, inner = resolve(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    infos = with_retries(path, lambda: filesystem.get_file_info(selector))
    return sorted((i.base_name, i.mtime_ns / 1e9) for i in infos if i.type == pafs.FileType.File)


def contents(path: str) -> set[str]:
    """Names of the files below a folder, without its locks and the temporary ones of processes that were killed; none
    where there is no folder."""
    names = [name for name, _ in list_files(path)] if path_type(path) == "folder" else []
    return {name for name in names if not TEMPORARY.search(name) and not name.startswith(LOCK)}


def clear(path: str) -> None:
    """Delete what is in a folder, but for its locks."""
    filesystem, inner = resolve(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    for info in with_retries(path, lambda: filesystem.get_file_info(selector)):
        if not info.base_name.startswith(LOCK):
            delete(join(path, info.base_name))


def sweep(path: str) -> None:
    """Delete the temporary files below a folder; for when nobody writes there any more."""
    for name, _ in list_files(path):
        if TEMPORARY.search(name):
            delete(join(path, name))


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
                yield full.relative_to(root).as_posix(), full.stat().st_size


def open_input(path: str) -> pa.NativeFile:
    """A seekable input stream. OSError (FileNotFoundError included) where it cannot be read."""
    filesystem, inner = resolve(path)
    return with_retries(path, lambda: filesystem.open_input_file(inner))


def read_small(
    path: str, most: int, stopped: threading.Event | None = None, part: tuple[int, int] | None = None
) -> bytes | None:
    """A file's bytes, or the `part` (offset, size) of them, in one read; None where there are more than `most`, or
    fewer than the part. OSError where it cannot be read. Once `stopped` is set a store that is away is not waited for.
    """
    filesystem, inner = resolve(path)
    if part is not None and part[1] > most:
        return None

    def work() -> bytes | None:
        with filesystem.open_input_file(inner) as stream:
            if part is None:
                return None if stream.size() > most else stream.read()
            data = stream.read_at(part[1], part[0])
            return data if len(data) == part[1] else None

    return with_retries(path, work, stopped)


def read_text(path: str) -> str:
    def work() -> str:
        with open_input(path) as stream:
            return stream.read().decode()

    return with_retries(path, work)


def make_folder(path: str) -> None:
    filesystem, inner = resolve(path)
    with_retries(path, lambda: filesystem.create_dir(inner, recursive=True))


def delete(path: str) -> None:
    """Delete a file or a whole folder if it is there."""
    filesystem, inner = resolve(path)

    def work() -> None:
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif info.type != pafs.FileType.NotFound:
            filesystem.delete_file(inner)

    with_retries(path, work)


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[Any]:
    """An output stream whose file appears under `path` only when the block ends without an error.

    Locally a temporary file in the same folder is synced and renamed. For an object store the bytes are kept in a
    temporary file of this machine ($TMPDIR) and uploaded once they are complete: a pyarrow stream cannot be aborted,
    it publishes what it was given as soon as it is garbage-collected.

    Raises:
        UnreachableError: the store did not take the object, after several tries.
    """
    filesystem, inner = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        temporary = Path(f"{inner}.{uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(inner)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryFile() as spool:
        yield spool
        spool.flush()
        # A mapping, so that nothing is held in memory; closed by its last reader.
        content = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) if spool.tell() else b""
        stopped = threading.Event()
        with ThreadPoolExecutor(1) as thread:  # Ctrl-C comes to the main thread: it cannot part `open` from `write`
            try:
                thread.submit(with_retries, path, lambda: _upload(filesystem, inner, content), stopped).result()
            except BaseException:
                stopped.set()
                raise


def _upload(filesystem: pafs.FileSystem, inner: str, content: bytes | mmap.mmap) -> None:
    """Write an object with one call: a stream has had all of it before anything closes it. Where the store refused a
    part, closing does not make the object appear."""
    with filesystem.open_output_stream(inner) as stream:
        stream.write(pa.py_buffer(content))


def write_text(path: str, text: str) -> None:
    with atomic_output(path) as stream:
        stream.write(text.encode())
