"""Several finished datasets made into one: rows are copied under one list of labels, no audio is read again."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ajepa import storage
from ajepa.config_json import differences
from ajepa.documents import read_document
from ajepa.errors import UserError
from ajepa.shards.dataset import DATASET_JSON, PLAN, Shard, ShardDataset, finish_dataset, open_dataset
from ajepa.shards.files import block_ids, find_incomplete, read_columns
from ajepa.shards.schema import BAD, BAD_SCHEMA, LOCATED, OK, ok_schema
from ajepa.shards.writer import shard_path

MERGE_JSON = f"{PLAN}/merge.json"
AGAIN = "make that dataset again, then run the same merge again"


def merge_datasets(paths: Sequence[str], output: str) -> Iterator[int]:
    """Merge finished datasets of one front end and different clips into a new one at `output`, a shard for a shard.

    Label names are those of the first dataset, then the new ones of the others; digests are checked on the way.
    Memory holds one row group and the clip ids. Interrupted at any time, the same call goes on.

    Yields:
        The number of ok rows written, after each row group; those of shards found finished at once.
        Nothing where the merge is finished already.

    Raises:
        UserError: inputs that do not go together, an output that holds something else, or a rotten row.
    """
    output = storage.absolute(output).rstrip("/")
    datasets = _open_all(paths, output)
    inputs = [
        # The rows of each shard as well: the content hash does not know which shard a row lies in.
        {"path": d.path, "content_hash": d.content_hash, "ok": d.num_clips, "bad": d.num_failed,
         "rows": [shard.rows for shard in d.shards]}
        for d in datasets
    ]  # fmt: skip
    plan = {"merge": inputs}
    found = storage.contents(output)
    _refuse_other_output(output, found, plan)
    if DATASET_JSON not in found:
        _check_clip_ids(datasets)
        for folder in (PLAN, OK, BAD):
            storage.make_folder(storage.join(output, folder))
        if MERGE_JSON not in found:
            storage.write_text(storage.join(output, MERGE_JSON), json.dumps(plan))
        label_names = list(dict.fromkeys(name for d in datasets for name in d.label_names))
        shards = [(dataset, shard) for dataset in datasets for shard in dataset.shards]
        for index, (dataset, shard) in enumerate(shards):
            path = shard_path(output, OK, index).removeprefix(f"{output}/")
            if path in found and _is_copied(dataset, shard, output, path.rpartition("/")[2]):
                yield shard.rows
            else:
                yield from _copy_shard(dataset, shard, output, index, label_names)
        merged = [{k: v for k, v in i.items() if k != "rows"} for i in inputs]
        expected = sum(d.num_clips + d.num_failed for d in datasets)
        finish_dataset(output, datasets[0].front_end, label_names, expected, {"merged": merged, "plan": plan})
    storage.delete(storage.join(output, PLAN))


def _open_all(paths: Sequence[str], output: str) -> list[ShardDataset]:
    inputs = [storage.absolute(path).rstrip("/") for path in paths]
    if len(inputs) < 2:
        raise UserError(f"a merge needs at least two datasets, got {len(inputs)}: name another one")
    for i, path in enumerate(inputs):
        if path in inputs[:i]:
            raise UserError(f"{path!r} is given twice: name each dataset once")
        if f"{output}/".startswith(f"{path}/"):
            raise UserError(f"the output {output!r} lies in the input {path!r}: choose another output")
    first, *others = datasets = [open_dataset(path) for path in inputs]
    for other in others:
        changed = differences(dataclasses.asdict(first.front_end), dataclasses.asdict(other.front_end))
        if changed:
            raise UserError(
                f"{first.path!r} and {other.path!r} were made with different front ends ({'; '.join(changed)}): "
                "preprocess one of them again with the settings of the other"
            )
    return datasets


def _refuse_other_output(output: str, found: set[str], plan: dict[str, Any]) -> None:
    if DATASET_JSON in found:
        same, what = open_dataset(output).info.get("plan") == plan, "another finished dataset"
    elif MERGE_JSON in found:
        same = read_document(storage.join(output, MERGE_JSON), "choose another output, or delete it first") == plan
        what = "an unfinished merge of other datasets, or of these before they changed or in another order"
    else:
        same, what = not found and storage.path_type(output) != "file", "something else"
    if not same:
        raise UserError(f"the output {output!r} holds {what}: choose another output, or delete it first")


def _check_clip_ids(datasets: list[ShardDataset]) -> None:
    """Raises UserError where a clip id is in two datasets, or the rows are not those of dataset.json."""
    chunks: list[pa.Array] = []
    for dataset in datasets:
        names = [shard.name for shard in dataset.shards]
        try:
            ok = [ids for table in read_columns(dataset.path, names, ["clip_id"], _damaged) for ids in table[0].chunks]
            bad = [ids for shard in dataset.shards for ids in _read_bad(dataset, shard)["clip_id"].chunks]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{dataset.path!r} cannot be read ({str(error).splitlines()[0]}): {AGAIN}") from error
        counts = sum(map(len, ok)), sum(map(len, bad))
        if counts != (dataset.num_clips, dataset.num_failed):
            raise UserError(
                f"{dataset.path!r} holds {counts[0]} ok and {counts[1]} bad rows, {DATASET_JSON} says "
                f"{dataset.num_clips} and {dataset.num_failed}: {AGAIN}"
            )
        chunks += [*ok, *bad]
    counted = pc.value_counts(pa.chunked_array(chunks, pa.string()))
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values").to_pylist()
    if twice:
        few = ", ".join(map(repr, sorted(twice)[:3])) + (", ..." if len(twice) > 3 else "")
        raise UserError(
            f"{len(twice)} clip ids occur in two of the datasets ({few}): leave one dataset out, "
            "or preprocess one of them again with other ids"
        )


def _damaged(path: str, name: str, what: str) -> UserError:
    return UserError(f"{storage.join(path, name)}: {what}: {AGAIN}")


def _copy_shard(dataset: ShardDataset, shard: Shard, output: str, index: int, label_names: list[str]) -> Iterator[int]:
    """Write shard `index` of the output; as in `write_shard` the ok file appears last and marks it finished."""
    numbers = {i: label_names.index(name) for i, name in enumerate(dataset.label_names)}
    where = storage.join(dataset.path, shard.name)
    schema = ok_schema(dataset.front_end)
    bad = _read_bad(dataset, shard)
    if bad.num_rows:
        with storage.atomic_output(shard_path(output, BAD, index)) as stream:
            pq.write_table(_relabel(bad, BAD_SCHEMA, numbers, where), stream)
    with (
        storage.atomic_output(shard_path(output, OK, index)) as stream,
        pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as parquet,
    ):
        for table in _read_groups(where):
            parquet.write_table(_relabel(table, schema, numbers, where))
            yield table.num_rows


def _is_copied(dataset: ShardDataset, shard: Shard, output: str, name: str) -> bool:
    """Whether a shard that was found at the output holds the clips of its input."""
    return not find_incomplete(output, [(name, block_ids(dataset.path, shard.name.rpartition("/")[2]))])


def _read_bad(dataset: ShardDataset, shard: Shard) -> pa.Table:
    """The rejected clips of a shard; no rows where it has no such file."""
    path = storage.join(dataset.path, BAD, shard.name.rpartition("/")[2])
    if storage.path_type(path) == "missing":
        return BAD_SCHEMA.empty_table()
    with storage.open_input(path) as stream:
        return pq.ParquetFile(stream).read()


def _read_groups(where: str) -> Iterator[pa.Table]:
    """Each row group of a file, after the digests of its rows were checked."""
    first = 0
    try:
        with storage.open_input(where) as stream:
            parquet = pq.ParquetFile(stream)
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                rows = zip(*(table[name] for name in ("clip_id", "digest", "log_mel")), strict=True)
                for i, (clip, digest, data) in enumerate(rows, first):
                    if hashlib.blake2b(data.as_buffer() or b"", digest_size=16).hexdigest() != digest.as_py():
                        row = f"{where}, row {i}, clip {clip.as_py()!r}"
                        raise UserError(f"{row}: log_mel does not match its digest: {AGAIN}")
                first += table.num_rows
                yield table
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read after row {first} ({str(error).splitlines()[0]}): {AGAIN}") from error


def _relabel(table: pa.Table, schema: pa.Schema, numbers: dict[int, int], where: str) -> pa.Table:
    labels = table["labels"].to_pylist()
    unnamed = {label for row in labels for label in row} - numbers.keys()
    if unnamed:
        raise UserError(f"{where}: label {min(unnamed)} has no name in {DATASET_JSON}: {AGAIN}")
    column = pa.array([[numbers[label] for label in row] for row in labels], schema.field("labels").type)
    place = table.column_names.index("labels")
    if LOCATED not in table.column_names:
        table = table.append_column(schema.field(LOCATED), pa.nulls(table.num_rows, schema.field(LOCATED).type))
    return table.set_column(place, schema.field("labels"), column).select(schema.names).cast(schema)
