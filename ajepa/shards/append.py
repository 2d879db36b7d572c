"""A finished dataset takes more clips: new shards beside the old ones, which stay as they are, and at last another
dataset.json over all of them. Until then the old one holds, and its readers know the new shards for unfinished."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa import storage
from ajepa.audio.manifest import Manifest
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from ajepa.shards.dataset import DATASET_JSON, PLAN, ShardDataset, finish_dataset, open_dataset
from ajepa.shards.files import damaged_shard, read_columns
from ajepa.shards.schema import BAD, LOCATED, OK
from ajepa.shards.writer import shard_number, shard_path

APPEND_JSON = f"{PLAN}/append.json"  # plan of clips that are being added
GIVE_UP = f"delete {APPEND_JSON} and all shards that {DATASET_JSON} does not list"
KNOWN_COLUMNS = ["clip_id", "uri", "start_s", "split", "fold", "labels", LOCATED]
PIECE = r"(#(?:\d{5}|[1-9]\d{5,}))?$"  # at the end of an id, of `segment`; that of a Parquet row has six digits
SAME_START = 1e-6  # seconds by which the start of a known clip may differ


@dataclasses.dataclass(frozen=True)
class NewClips:
    """What of a source is new in a dataset."""

    clips: pa.Table  # of MANIFEST_SCHEMA, with label ids of the grown dataset
    label_names: list[str]  # of the grown dataset: the old ones, then those that are new
    known: int  # clips of the source that the dataset has, ok or bad
    known_bad: int
    remarks: tuple[str, ...]  # a line each, for people

    def only(self, clip_ids: pa.ChunkedArray, label_names: Sequence[str]) -> "NewClips":
        """Those of a job that was begun when the source had fewer: it goes on with what it began with.

        Args:
            clip_ids: of the job.
            label_names: of the job.
        """
        clips = self.clips.filter(pc.is_in(self.clips["clip_id"], value_set=clip_ids))
        later = self.clips.num_rows - clips.num_rows
        more = (f"{later} clips came to the source after this was begun: run the command again to add them",)
        numbers = {name: i for i, name in enumerate(label_names)}
        clips = with_labels(clips, [numbers.get(name, -1) for name in self.label_names])
        return dataclasses.replace(
            self, clips=clips, label_names=list(label_names), remarks=self.remarks + (more if later else ())
        )

    @property
    def counted(self) -> str:
        """A line on both."""
        bad = f" ({self.known_bad} of them bad: not tried again)" if self.known_bad else ""
        return f"{self.known} clips of the source are known{bad}, {self.clips.num_rows} new"


def find_new(dataset: ShardDataset, manifest: Manifest) -> NewClips:
    """The clips of a source that a dataset does not have.

    Raises:
        UserError: recordings are cut into other clips than those of the dataset, or a file of the dataset is damaged.
    """
    ok = read_columns(dataset.path, [shard.name for shard in dataset.shards], KNOWN_COLUMNS, damaged_shard)
    bad = list(dataset.bad_tables(KNOWN_COLUMNS))
    if sum(map(len, bad)) != dataset.num_failed:
        raise UserError(
            f"{dataset.path}: {sum(map(len, bad))} rows in {BAD}, {DATASET_JSON} says {dataset.num_failed}: restore "
            "them, or preprocess into a new folder"
        )
    there = pa.concat_tables([*ok, *bad])
    names = list(dict.fromkeys([*dataset.label_names, *manifest.label_names]))
    numbers = {name: i for i, name in enumerate(names)}
    clips = with_labels(manifest.clips, [numbers[name] for name in manifest.label_names])
    clips, renamed = _as_known(clips, there) if manifest.ids_are_places else (clips, [])
    index = pc.index_in(clips["clip_id"], value_set=there["clip_id"])
    is_known = pc.is_valid(index)
    new, known = clips.filter(pc.invert(is_known)), clips.filter(is_known)
    rows = index.filter(is_known)
    _refuse_other_cuts(new["clip_id"], known, there, rows)
    known_bad = pc.sum(pc.greater_equal(rows, dataset.num_clips)).as_py() or 0
    return NewClips(new, names, known.num_rows, known_bad, (*renamed, *_changes(known, there.take(rows))))


def _as_known(clips: pa.Table, there: pa.Table) -> tuple[pa.Table, list[str]]:
    """Clips of archives under the ids that the dataset has of what lies at their places, and a remark where those are
    others: names of members that come in two archives begin with the archive's, as soon as the second is there."""
    index = pc.index_in(_places(clips), value_set=_places(there), skip_nulls=True)
    stems = pc.replace_substring_regex(there["clip_id"], PIECE, "").take(index)
    pieces = pc.replace_substring_regex(clips["clip_id"], f"^(?s:.*?){PIECE}", r"\1")
    ids = pc.if_else(pc.is_valid(index), pc.binary_join_element_wise(stems, pieces, ""), clips["clip_id"])
    changed = np.flatnonzero(pc.not_equal(ids, clips["clip_id"]).to_numpy())
    if not len(changed):
        return clips, []
    theirs, ours = (column[changed[0]].as_py() for column in (clips["clip_id"], ids))
    remark = (
        f"{len(changed)} clips have other ids in this source than in the dataset, at the same places ({theirs!r} is "
        f"{ours!r}): they keep those of the dataset"
    )
    return clips.set_column(clips.column_names.index("clip_id"), clips.schema.field("clip_id"), ids), [remark]


def _places(rows: pa.Table) -> pa.ChunkedArray:
    """Of what is read in archives, texts; null of files of their own."""
    parts = [pc.struct_field(rows[LOCATED], name) for name in ("kind", "name", "offset", "size", "row_group", "row")]
    texts = [pc.fill_null(part.cast(pa.string()), "") for part in parts]
    inside = pc.is_in(texts[0], value_set=pa.array(["bytes", "parquet"]))
    return pc.if_else(inside, pc.binary_join_element_wise(rows["uri"], *texts, "\n"), None)


def with_labels(clips: pa.Table, numbers: Sequence[int]) -> pa.Table:
    """Clips whose label i is numbers[i] instead."""
    place, field = clips.column_names.index("labels"), clips.schema.field("labels")
    return clips.set_column(place, field, relabel(clips["labels"], numbers))


def relabel(column: pa.ChunkedArray, numbers: Sequence[int]) -> pa.ChunkedArray:
    """Lists of label ids, label i replaced by numbers[i]."""
    table, chunks = pa.array(numbers, pa.int32()), []
    for chunk in column.chunks:
        starts = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(chunk), 0).to_numpy())])
        chunks.append(pa.ListArray.from_arrays(pa.array(starts, pa.int32()), table.take(chunk.flatten())))
    return pa.chunked_array([chunk.cast(column.type) for chunk in chunks], column.type)


def _refuse_other_cuts(new: pa.ChunkedArray, known: pa.Table, there: pa.Table, rows: pa.ChunkedArray) -> None:
    """Raises UserError where a clip of the source overlaps with one of the dataset under another id, or has its id and
    begins elsewhere. `rows` [known] are those of `there`."""
    starts = known["start_s"].to_numpy(), there["start_s"].take(rows).to_numpy()
    moved = np.flatnonzero(np.abs(starts[0] - starts[1]) > SAME_START)
    wrong = known["clip_id"].take(pa.array(moved)).to_pylist()
    pieces = pc.match_substring_regex(new, r"#\d{5,}$")
    of_whole = new.filter(pieces)
    whole = pc.replace_substring_regex(of_whole, r"#\d{5,}$", "")
    wrong += of_whole.filter(pc.is_in(whole, value_set=there["clip_id"])).to_pylist()
    uncut = new.filter(pc.invert(pieces))
    first = pc.binary_join_element_wise(uncut, "#00000", "")
    wrong += uncut.filter(pc.is_in(first, value_set=there["clip_id"])).to_pylist()
    if wrong:
        raise UserError(
            f"{len(wrong)} clips of the source are cut from recordings that the dataset holds, in another way "
            f"({min(wrong)!r}): give --segment as for the dataset, or choose another --output"
        )


def _changes(known: pa.Table, there: pa.Table) -> Iterable[str]:
    """Lines on known clips [n] of which the source says something else now than the rows [n] of the dataset."""

    def example(differs: pa.ChunkedArray) -> str:
        row = np.flatnonzero(differs.to_numpy())[0]
        return f"{known['clip_id'][row].as_py()!r}"

    uri = pc.not_equal(known["uri"], there["uri"])
    if pc.any(uri).as_py():
        yield (
            f"{pc.sum(uri).as_py()} known clips lie at another place in this source ({example(uri)}): taken for the "
            "same clips, by their ids, and not read"
        )
    labels = zip(known["labels"].to_pylist(), there["labels"].to_pylist(), strict=True)
    other = pa.chunked_array([pa.array([sorted(a or ()) != sorted(b or ()) for a, b in labels], pa.bool_())])
    for name in ("split", "fold"):
        other = pc.or_(other, pc.not_equal(known[name], there[name]).combine_chunks())
    if pc.any(other).as_py():
        yield (
            f"{pc.sum(other).as_py()} known clips have another split, fold or labels in this source "
            f"({example(other)}): the dataset keeps its own"
        )


def next_shard(dataset: ShardDataset) -> int:
    """The number of the first shard to add."""
    return 1 + max(map(shard_number, dataset.file_names), default=-1)


def read_plan(path: str) -> dict[str, Any] | None:
    """The plan of clips that are being added to a dataset; None where nobody does.

    Raises:
        UserError: it is damaged.
    """
    where = storage.join(storage.absolute(path), APPEND_JSON)
    if storage.path_type(where) == "missing":
        return None
    plan = read_document(where, GIVE_UP)
    with refusing_damage(where, GIVE_UP):
        require_types(plan, first_shard=int, shards=int, label_names=list)
    return plan


def unfinished_files(path: str, names: Collection[str]) -> set[str]:
    """Which of these files ("status=ok/...") belong to clips that are being added, temporary ones included.

    Raises:
        UserError: their plan is damaged.
    """
    plan = read_plan(path) or {"first_shard": 0, "shards": 0}
    numbers = range(plan["first_shard"], plan["first_shard"] + plan["shards"])
    planned = {shard_path("", status, number).lstrip("/") for status in (OK, BAD) for number in numbers}
    return {name for name in names if storage.TEMPORARY.sub("", name) in planned}


def refuse_unlisted(dataset: ShardDataset) -> None:
    """Refuse a dataset beside whose shards others lie, as those of a job whose plan was deleted: new ones could have
    their names.

    Raises:
        UserError: there are some.
    """
    listed = set(dataset.file_names)
    for status in (OK, BAD):
        odd = sorted(storage.contents(storage.join(dataset.path, status)) - listed)
        if odd:
            more = f" and {len(odd) - 1} more are" if len(odd) > 1 else " is"
            raise UserError(f"{dataset.path}: {status}/{odd[0]}{more} not listed in {DATASET_JSON}: delete what is not")


def is_appended(dataset: ShardDataset, plan: dict[str, Any]) -> bool:
    """Whether a dataset holds the clips of a plan already: its job was killed before it deleted the plan."""
    return any(entry["plan"] == plan for entry in dataset.info.get("appended", []))


def finish_append(dataset: ShardDataset, plan: dict[str, Any], about: dict[str, Any]) -> ShardDataset:
    """Check that every clip is there once, old and new, and put a dataset.json over all shards in place of the old one.

    Args:
        about: what is to be kept of this job.

    Raises:
        UserError: as `finish_dataset`.
    """
    extra = dataset.info | {"appended": [*dataset.info.get("appended", []), {"plan": plan, **about}]}
    expected = dataset.num_clips + dataset.num_failed + plan["clips"]
    return finish_dataset(
        dataset.path, dataset.front_end, plan["label_names"], expected, extra, frozenset(dataset.file_names)
    )


def settings(path: str) -> dict[str, Any]:
    """What more clips of a dataset are made with: "front_end", "duplicates" and "silent"; nothing where there is no
    finished dataset.

    Raises:
        UserError: its description is damaged.
    """
    if storage.path_type(storage.join(storage.absolute(path), DATASET_JSON)) == "missing":
        return {}
    dataset = open_dataset(path)
    plans = [dataset.info.get("plan", {}), *(entry["plan"] for entry in dataset.info.get("appended", []))]
    return {"front_end": dataset.front_end} | {name: plans[-1].get(name, "keep") for name in ("duplicates", "silent")}
