"""The Parquet files of a shard folder: their small columns, and what is said of one that is damaged."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.audio.manifest import LOCATOR
from ajepa.errors import UserError
from ajepa.shards.schema import BAD, LOCATED, OK

READ_AHEAD = 16  # shards whose small columns are read at a time (a few MB each)
T = TypeVar("T")


def damaged_shard(dataset: str, name: str, what: str) -> UserError:
    """What is said of a shard of a finished dataset. The same preprocess command would find the dataset finished and
    leave it alone."""
    return UserError(
        f"{storage.join(dataset, name)}: {what.rstrip('.')}. Restore the shard (`python pipelines/preprocess.py "
        f"--verify {dataset}` finds every damage of this kind) or make the dataset again (preprocess with "
        "--overwrite), then run the same command again"
    )


def damaged_part(output: str, name: str, what: str) -> UserError:
    """What is said of a file of a job that is not finished: the job makes a file again that is not there."""
    return UserError(f"{storage.join(output, name)}: {what}. Delete this file, then run the same command again")


def read_parquet(path: str, parse: Callable[[Any], T], damaged: Callable[[str], UserError]) -> T:
    """Read from a Parquet file.

    Args:
        parse: takes an open file.
        damaged: makes the error from what is wrong.

    Raises:
        UserError: the file is missing or damaged.
        UnreachableError: the store did not answer.
    """

    def work() -> T:
        with storage.open_input(path) as stream:
            return parse(stream)

    return naming_damage(path, work, damaged)


def naming_damage(path: str, work: Callable[[], T], damaged: Callable[[str], UserError]) -> T:
    """Do `work` on a Parquet file, again after a while where its store does not answer.

    Raises:
        UserError: the file is missing or damaged, as `damaged` has it.
        UnreachableError: the store did not answer.
    """
    try:
        return storage.with_retries(path, work)
    except storage.UnreachableError:
        raise
    except FileNotFoundError as error:
        raise damaged("is missing") from error
    except (OSError, pa.ArrowException, KeyError) as error:
        raise damaged(cannot_be_read(error)) from error


def cannot_be_read(error: Exception) -> str:
    """With the first line of the reason: Arrow's own errors have several."""
    return f"cannot be read: {next(iter(str(error).splitlines()), '') or type(error).__name__}"


def read_columns(
    folder: str, names: Iterable[str], columns: list[str], damaged: Callable[[str, str, str], UserError]
) -> Iterator[pa.Table]:
    """Columns of each of these files, read ahead by threads: a store answers many at a time.

    Args:
        damaged: `damaged_shard` or `damaged_part`.

    Raises:
        UserError: a file is missing or damaged.
        UnreachableError: the store did not answer.
    """

    def read(name: str) -> pa.Table:
        def parse(stream: Any) -> pa.Table:
            if LOCATED not in columns:
                return pq.read_table(stream, columns=columns, use_threads=False)
            table = pq.ParquetFile(stream).read(columns=columns, use_threads=False)  # what is not there is left out
            if LOCATED not in table.column_names:
                table = table.append_column(LOCATED, pa.nulls(table.num_rows, LOCATOR))
            return table.select(columns)

        return read_parquet(storage.join(folder, name), parse, lambda what: damaged(folder, name, what))

    listed = list(names)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for start in range(0, len(listed), READ_AHEAD):
            yield from pool.map(read, listed[start : start + READ_AHEAD])


def damaged_file(finished: Collection[str]) -> Callable[[str, str, str], UserError]:
    """What is said of a file of a dataset that a job adds to.

    Args:
        finished: file names of the shards that were there before: the job does not make those again.
    """

    def damaged(output: str, name: str, what: str) -> UserError:
        return (damaged_shard if name.rpartition("/")[2] in finished else damaged_part)(output, name, what)

    return damaged


def read_shards(
    output: str, status: str, columns: list[str], finished: Collection[str] = ()
) -> Iterator[tuple[str, pa.Table]]:
    """(file name, columns) of every file of a job's output, in order. `finished`: as for `damaged_file`.

    Raises:
        UserError, UnreachableError: as `read_columns`.
    """
    names = sorted(name for name in storage.contents(storage.join(output, status)) if name.endswith(".parquet"))
    tables = read_columns(output, [f"{status}/{name}" for name in names], columns, damaged_file(finished))
    yield from zip(names, tables, strict=True)


def block_ids(output: str, name: str) -> list[str]:
    """The clip ids of a shard or another block of clips, ok ones first; `name` is that of its files.

    Raises:
        OSError, pa.ArrowException: one of its files cannot be read.
    """
    ids: list[str] = []
    for status in (OK, BAD):
        path = storage.join(output, status, name)
        if status == OK or storage.path_type(path) == "file":
            with storage.open_input(path) as stream:
                ids += pq.read_table(stream, columns=["clip_id"], use_threads=False)["clip_id"].to_pylist()
    return ids


def find_incomplete(output: str, blocks: Sequence[tuple[str, Collection[str]]]) -> list[str]:
    """Which of these blocks, by the name of their files, cannot be read or do not hold the clips they should, each
    once. A file under its final name was written whole, but by what and for what its name does not say.

    Args:
        blocks: name and clip ids of each.

    Raises:
        UnreachableError: the store does not answer.
    """

    def is_complete(block: tuple[str, Collection[str]]) -> bool:
        name, ids = block
        try:
            return sorted(storage.with_retries(output, lambda: block_ids(output, name))) == sorted(ids)
        except storage.UnreachableError:
            raise
        except (OSError, pa.ArrowException):
            return False

    with ThreadPoolExecutor(READ_AHEAD) as pool:
        return [name for (name, _), complete in zip(blocks, pool.map(is_complete, blocks), strict=True) if not complete]
