"""Manifests as people write them: a table of clips, read into the columns of the contract or refused."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ajepa import storage
from ajepa.audio.labels import label_ids
from ajepa.audio.manifest import LOCATOR, MANIFEST_SCHEMA, Manifest
from ajepa.errors import UserError

TEXTS = ("clip_id", "uri", "labels", "split")  # never numbers or nulls, whatever they look like
TIMES = ("start_s", "duration_s")
# What the words of a column's name mean in the contract, once its unit and its general words are taken away. An offset
# may be an end as well: see `_meaning`.
MEANINGS = {
    **dict.fromkeys(("label", "class", "classes", "category", "categories", "tag", "tags", "target", "targets",
                     "species", "ebird", "scientific", "common"), ("labels",)),
    **dict.fromkeys(("start", "starts", "begin", "onset", "offset", "t0", "tmin", "xmin"), ("start_s",)),
    **dict.fromkeys(("end", "ends", "stop", "t1", "tmax", "xmax"), TIMES),
    **dict.fromkeys(("duration", "dur", "length", "len", "seconds", "delta"), ("duration_s",)),
    **dict.fromkeys(("subset", "partition", "set", "splits", "train", "test"), ("split",)),
    **dict.fromkeys(("folds", "kfold"), ("fold",)),
}  # fmt: skip
GENERAL = frozenset(("time", "times", "name", "names", "id", "ids", "code", "codes", "primary", "clip",
                     "event", "sound", "segment", "chunk", "data", "dataset", "cv", "k", "t", "is"))  # fmt: skip
JOINED = re.compile(r"(start|begin|end|stop|onset|offset)(time|times|sec|secs|seconds|ms)$")  # two words in one
SECONDS = frozenset(("s", "sec", "secs", "second", "seconds"))
OTHER_UNITS = frozenset((
    "ms", "msec", "millis", "millisecond", "milliseconds", "us", "min", "minutes", "frame", "frames", "sample",
    "samples",
))  # fmt: skip


def read_table(path: str) -> Manifest:
    """A CSV or Parquet table with `uri` and, optionally, clip_id, start_s, duration_s, labels, split, fold. Case and
    blanks in the names of columns do not matter.

    Relative uris start at the manifest's folder; labels in a CSV are separated by ";". Without clip_id a clip is called
    by its uri, and pieces of one file by their times as well.

    Raises:
        UserError: no such table, or a column that looks like one of these under another name: it is not ignored.
    """
    if storage.path_type(path) != "file":
        raise UserError(f"the manifest {path!r} is not a file (a CSV or Parquet table is needed)")
    path = storage.absolute(path)
    table, renamed = _known_columns(_read(path), path)
    for name in ("uri", "clip_id"):
        missing = _count_missing(table[name]) if name in table.column_names else 0
        if missing:
            raise UserError(f"the manifest {path!r} has {missing} row{'s' * (missing > 1)} without a {name}")
    unknown = set(table.column_names) - set(MANIFEST_SCHEMA.names)
    try:
        clips, names = _manifest_table(table, path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"the manifest {path!r} has a column of the wrong type: {str(error).splitlines()[0]}"
        ) from error
    remarks = [f"column {old!r} of the manifest taken for {new!r}" for old, new in renamed.items()]
    if unknown:
        remarks.append(f"columns of the manifest left out: {', '.join(sorted(unknown))}")
    return Manifest(clips, names, tuple(remarks))


def _read(path: str) -> pa.Table:
    try:
        with storage.open_input(path) as stream:
            if path.lower().endswith((".parquet", ".pq")):
                return pa.parquet.read_table(stream)
            data = stream.read()
        head = _first_line(data, path)
        text = {name: pa.string() for name in head if _plain(name) in TEXTS}
        options = pa.csv.ConvertOptions(column_types=text, strings_can_be_null=False)
        # One thread: two million rows take 0.2 s, and a process that ends at once was aborted by Arrow's own threads.
        one = pa.csv.ReadOptions(use_threads=False)
        return pa.csv.read_csv(pa.BufferReader(data), one, convert_options=options)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the manifest {path!r}: {str(error).splitlines()[0]}") from error


def _first_line(data: bytes, path: str) -> list[str]:
    """The names of a CSV's columns.

    Raises:
        UserError: it is no text in UTF-8.
    """
    starts = {
        b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x89HDF": "HDF5", b"PK\x03\x04": "a spreadsheet or an archive",
        b"PAR1": "Parquet under another name", b"\x1f\x8b": "compressed",
    }  # fmt: skip
    found = next((what for start, what in starts.items() if data.startswith(start)), None)
    if found is None and b"\0" in data[:4096]:
        found = "no text"
    if found is not None:
        raise UserError(f"the manifest {path!r} is {found}: save it as a CSV in UTF-8, or as .parquet")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise UserError(f"the manifest {path!r} is not UTF-8 ({why}): save it as UTF-8") from error
    return next(csv.reader(io.StringIO(text.removeprefix("\ufeff"))), [])


def _plain(name: str) -> str:
    return name.strip().removeprefix("\ufeff").casefold()


def _words(name: str) -> list[str]:
    """The words of a name, "classID" and "Class-ID" alike."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.removeprefix("\ufeff")).casefold())
    pairs = ((word, JOINED.match(word)) for word in words)
    return [part for word, pair in pairs for part in (pair.groups() if pair else (word,))]


def _meaning(name: str, others: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """What a name means in the contract, as "Begin Time (s)" and "startTime" do start_s, and its unit if that is not
    seconds. An offset beside another start is where the sound ends, as in DCASE's lists; alone it is where it starts.
    """
    words = _words(name)
    if "_".join(words) in MANIFEST_SCHEMA.names:
        return ("_".join(words),), ""
    unit = ""
    if len(words) > 1 and words[-1] in SECONDS | OTHER_UNITS:
        last = words.pop()
        unit = last if last in OTHER_UNITS else ""
    telling = [word for word in words if word not in GENERAL]
    meanings = {(word,) if word in MANIFEST_SCHEMA.names else MEANINGS.get(word, ()) for word in telling}
    if len(meanings) != 1:
        return (), ""
    (meant,) = meanings
    if telling == ["offset"] and any(_meaning(other, ())[0] == ("start_s",) for other in others if other != name):
        meant = TIMES
    return meant, unit if set(meant) & set(TIMES) else ""


def _known_columns(table: pa.Table, path: str) -> tuple[pa.Table, dict[str, str]]:
    """The table with the names of the contract, and which of its own they replace.

    Raises:
        UserError: a name that occurs twice, or one that is not understood though it seems to mean something.
    """
    names = table.column_names
    twice = sorted({_plain(name) for name in names if [_plain(n) for n in names].count(_plain(name)) > 1})
    if twice:
        raise UserError(f"the manifest {path!r} has the column {twice[0]!r} twice: remove one")
    new = [_plain(name) if _plain(name) in MANIFEST_SCHEMA.names else name for name in names]
    if "uri" not in new:
        raise UserError(f"the manifest {path!r} has no column `uri` (it has: {', '.join(names)})")
    for name in new:
        meant, unit = ((), "") if name in MANIFEST_SCHEMA.names else _meaning(name, new)
        if not set(meant) <= set(new):  # beside what it means it is a spare column, and named as left out
            hint = "start_s + duration_s is the end" if meant == TIMES else ""
            hint += f"{', ' * bool(hint)}seconds, not {unit}" if unit else ""
            raise UserError(
                f"the manifest {path!r} has a column {name!r}, which is not read: call it {' and '.join(meant)}"
                + f" ({hint})" * bool(hint)
                + ", or remove it if it means something else"
            )
    return table.rename_columns(new), {old: now for old, now in zip(names, new, strict=True) if old != now}


def _count_missing(column: pa.ChunkedArray) -> int:
    """Nulls, and empty or blank texts: a CSV has no nulls."""
    texts = pc.utf8_trim_whitespace(pc.fill_null(column.cast(pa.string()), ""))
    return int(pc.sum(pc.equal(texts, "")).as_py() or 0)


def _manifest_table(table: pa.Table, path: str) -> tuple[pa.Table, list[str]]:
    """The clips and label names of a user's table, column by column: a list of millions passes in seconds."""
    uris = table["uri"].cast(pa.string())
    known = pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/"))
    columns = {}
    columns["uri"] = pc.if_else(known, uris, pc.binary_join_element_wise(path.rpartition("/")[0], uris, "/"))
    given = table["labels"] if "labels" in table.column_names else pa.nulls(table.num_rows, pa.string())
    columns["labels"], names = label_ids(given)
    for name, default in (("start_s", 0.0), ("duration_s", None), ("split", ""), ("fold", -1)):
        kind = MANIFEST_SCHEMA.field(name).type
        column = table[name] if name in table.column_names else pa.nulls(table.num_rows, kind)
        columns[name] = column.cast(kind) if default is None else pc.fill_null(column.cast(kind), default)
    columns["clip_id"] = table["clip_id"] if "clip_id" in table.column_names else _ids(uris, columns)
    columns["locator"] = pa.nulls(table.num_rows, LOCATOR)
    clips = [columns[field.name].cast(field.type) for field in MANIFEST_SCHEMA]
    return pa.table(clips, schema=MANIFEST_SCHEMA), names


def _ids(uris: pa.ChunkedArray, columns: dict[str, Any]) -> pa.Array:
    """A clip's uri; of pieces of one file with their times, as "a.wav@1.5-2"."""
    names = uris.to_pylist()
    counts = Counter(names)
    starts, lengths = columns["start_s"].to_pylist(), columns["duration_s"].to_pylist()
    return pa.array([
        name if counts[name] == 1 else f"{name}@{start:.10g}-{'' if length is None else f'{start + length:.10g}'}"
        for name, start, length in zip(names, starts, lengths, strict=True)
    ], pa.string())  # fmt: skip
