"""Clips in the members of tar archives, as WebDataset, LAION and Dasheng hold them."""

import functools
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ajepa import storage
from ajepa.audio.archives.each import Each
from ajepa.audio.archives.files import find_files
from ajepa.audio.archives.splits import split_of
from ajepa.audio.archives.tar_index import TarIndex, index_tar
from ajepa.audio.labels import MID, class_table_near, label_ids, named_mids
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest, in_reading_order, locators
from ajepa.errors import UserError, one_line

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the compressed ones are refused by name
OURS = ("labels", "split", "fold")  # what --columns can name


def webdataset(path: str, columns: Mapping[str, str], each: Each) -> Manifest:
    """List the sounds of tar archives.

    Args:
        path: a file, a folder or a pattern; local or a URI.
        columns: see `index_tar`.
        each: maps over the archives.

    Raises:
        UserError: no archives, a compressed one or none at all, or a label that is not in AudioSet's class table, where
            there is one.
    """
    for ours, theirs in columns.items():
        if theirs and theirs.partition(".")[0] not in ("cls", "txt", "json"):
            raise UserError(
                f"--columns {ours}={theirs}: of tar archives {', '.join(OURS)} are read from cls, txt or a path into "
                "the JSON as json.tag"
            )
    folder, names = find_files(path, ENDINGS, "tar archives")
    indices = list(each(functools.partial(_indexed, folder=folder, columns=dict(columns)), names))
    keys = [member.key for index in indices for member in index.members]
    if not keys:
        raise UserError(f"the tar archives of {path!r} hold no sound{_first_remark(indices)}")
    remarks = _remarks(indices)
    if len(set(keys)) < len(keys):
        named = [(name, member.key) for name, index in zip(names, indices, strict=True) for member in index.members]
        keys = [f"{name.removesuffix('.tar')}/{key}" for name, key in named]
        remarks.append(f"a key comes in several archives: ids begin with the archive's name, as {keys[0]!r}")
    labels, label_names, more = _labels(indices, storage.join(folder, names[0]))
    splits = [[m.split or split_of(name) for m in index.members] for name, index in zip(names, indices, strict=True)]
    by_file = Counter(split for part in splits for split in part)
    if by_file.keys() - {""}:
        remarks.append("splits: " + ", ".join(f"{name or 'none'} ({n:,})" for name, n in sorted(by_file.items())))
    uris = [pa.array([storage.join(folder, name)]).take(pa.array(np.zeros(len(index.members), np.int8)))
            for name, index in zip(names, indices, strict=True)]  # fmt: skip
    members = [member for index in indices for member in index.members]
    given = {
        "clip_id": pa.array(keys, pa.string()),
        "uri": pa.chunked_array(uris, pa.string()),
        "start_s": pa.array(np.zeros(len(keys))),
        "duration_s": pa.nulls(len(keys), pa.float64()),
        "split": pa.array([split for part in splits for split in part], pa.string()),
        "fold": pa.array([member.fold for member in members], pa.int32()),
        "labels": labels,
        "locator": locators(
            ["unreadable" if member.problem else "bytes" for member in members], len(keys),
            name=[member.problem or member.name for member in members],
            offset=[member.offset for member in members], size=[member.size for member in members],
        ),
    }  # fmt: skip
    clips = pa.table([given[field.name] for field in MANIFEST_SCHEMA], schema=MANIFEST_SCHEMA)
    return Manifest(in_reading_order(clips), label_names, (*remarks, *more), ids_are_places=True)


def _indexed(name: str, folder: str, columns: Mapping[str, str]) -> TarIndex:
    where = storage.join(folder, name)
    try:
        return index_tar(where, columns)
    except storage.UnreachableError:
        raise
    except OSError as error:
        raise UserError(f"{where!r} cannot be read: {one_line(error)}") from error


def _labels(indices: list[TarIndex], where: str) -> tuple[pa.Array, list[str], list[str]]:
    """Label ids, their names, and remarks."""
    lists = pa.array([member.labels for index in indices for member in index.members], pa.list_(pa.string()))
    found = {label for index in indices for member in index.members for label in member.labels}
    if found and all(MID.fullmatch(label) for label in found):
        table = class_table_near(where)
        if table is not None:
            return *named_mids(lists, table), [f"names of labels from {table}"]
    return *label_ids(lists), []


def _remarks(indices: list[TarIndex]) -> list[str]:
    counts: dict[str, tuple[int, str]] = {}
    for index in indices:
        for kind, (count, example) in index.remarks.items():
            before, first = counts.get(kind, (0, example))
            counts[kind] = before + count, first
    return [f"{count:,} {kind}: {example}" for kind, (count, example) in sorted(counts.items())]


def _first_remark(indices: list[TarIndex]) -> str:
    found = _remarks(indices)
    return f" ({found[0]})" if found else ""
