"""Where clips come from: each source lists its clips as one manifest table, and says what it left out."""

import dataclasses
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ajepa import storage
from ajepa.audio import corpora
from ajepa.audio.decode import AUDIO_EXTENSIONS, AV_EXTENSIONS, has_av
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest, make_table
from ajepa.choices import SourceName
from ajepa.errors import UserError


def load_manifest(
    source: SourceName, path: str, *, labels_from_folders: bool = False, whole_videos: bool = False
) -> Manifest:
    """List the clips of `path`, sorted by clip id.

    Raises:
        UserError: nothing there, no audio, missing columns, a clip id that occurs twice, or containers that need PyAV
            where it is not installed.
    """
    if source == "folder":
        manifest = _folder(path, labels_from_folders)
    elif source == "esc50":
        manifest = corpora.esc50(path)
    elif source == "speech_commands":
        manifest = corpora.speech_commands(path)
    elif source == "audioset":
        manifest = corpora.audioset(path, whole_videos)
    else:
        manifest = _manifest(path)
    if not manifest.clips.num_rows:
        raise UserError(f"no clips in {path!r}")
    require_decoders(manifest.clips["uri"].to_pylist())
    clips = manifest.clips.sort_by("clip_id")
    counts = pc.value_counts(clips["clip_id"])
    twice = [c["values"] for c in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if twice:
        raise UserError(f"{len(twice)} clip ids occur more than once in {path!r}: {', '.join(twice[:5])}")
    return dataclasses.replace(manifest, clips=clips)


def require_decoders(uris: Iterable[str]) -> None:
    """Refuse files that nothing installed here can read: a job would list all of them as bad, for good.

    Raises:
        UserError: PyAV is needed and not there.
    """
    if not has_av():
        needing = [uri for uri in uris if PurePosixPath(uri).suffix.lower() in AV_EXTENSIONS]
        if needing:
            raise UserError(
                f"{len(needing)} files need PyAV, {needing[0]!r} among them: pip install 'ajepa[av]', or leave them out"
            )


def _folder(path: str, labels_from_folders: bool) -> Manifest:
    storage.require_folder(path, "the input folder")
    path = storage.absolute(path)
    files = [name for name, _ in storage.list_files(path)]
    audio = [name for name in files if PurePosixPath(name).suffix.lower() in AUDIO_EXTENSIONS]
    unnameable = [name for name in audio if not _is_text(name)]
    audio = [name for name in audio if _is_text(name)]
    if not audio:
        what = "is empty" if not files else f"holds {len(files)} files, none with an audio extension"
        raise UserError(f"the input folder {path!r} {what} ({' '.join(sorted(AUDIO_EXTENSIONS))})")
    labels = [[PurePosixPath(name).parent.name] if labels_from_folders else [] for name in audio]
    if labels_from_folders and [""] in labels:
        raise UserError(f"--labels-from-folders: {audio[labels.index([''])]!r} lies in no subfolder of {path!r}")
    names = sorted({name for row in labels for name in row})
    table = make_table(audio, [storage.join(path, name) for name in audio], labels, names)
    other = len(files) - len(audio) - len(unnameable)
    remarks = [f"{other} files without an audio extension left out"] if other else []
    if unnameable:
        remarks.append(f"{len(unnameable)} audio files whose names are not UTF-8 left out: {unnameable[0]!r}")
    return Manifest(table, names, tuple(remarks))


def _is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8; os.walk hands out the others with surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def _manifest(path: str) -> Manifest:
    """A CSV or Parquet table with `uri` and, optionally, clip_id, start_s, duration_s, labels, split, fold.

    Relative uris start at the manifest's folder; labels in a CSV are separated by ";".
    """
    if storage.kind(path) != "file":
        raise UserError(f"the manifest {path!r} is not a file (a CSV or Parquet table is needed)")
    path = storage.absolute(path)
    try:
        with storage.open_input(path) as stream:
            if path.endswith(".parquet"):
                table = pa.parquet.read_table(stream)
            else:
                text = {name: pa.string() for name in ("clip_id", "uri", "labels", "split")}
                options = pa.csv.ConvertOptions(column_types=text, strings_can_be_null=False)
                table = pa.csv.read_csv(stream, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"cannot read the manifest {path!r}: {str(error).splitlines()[0]}") from error
    unknown = set(table.column_names) - set(MANIFEST_SCHEMA.names)
    if "uri" not in table.column_names:
        raise UserError(f"the manifest {path!r} has no column `uri` (it has: {', '.join(table.column_names)})")
    for name in ("uri", "clip_id"):
        if name in table.column_names and table[name].null_count:
            raise UserError(f"the manifest {path!r} has {table[name].null_count} rows without a {name}")
    try:
        clips, names = _manifest_table(table, path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(
            f"the manifest {path!r} has a column of the wrong type: {str(error).splitlines()[0]}"
        ) from error
    remark = f"columns of the manifest left out: {', '.join(sorted(unknown))}"
    return Manifest(clips, names, (remark,) if unknown else ())


def _manifest_table(table: pa.Table, path: str) -> tuple[pa.Table, list[str]]:
    """The clips and label names of a user's table, column by column: a list of millions passes in seconds."""
    uris = table["uri"].cast(pa.string())
    known = pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/"))
    columns = {"clip_id": table["clip_id"] if "clip_id" in table.column_names else uris}
    columns["uri"] = pc.if_else(known, uris, pc.binary_join_element_wise(path.rpartition("/")[0], uris, "/"))
    given = table["labels"] if "labels" in table.column_names else pa.nulls(table.num_rows, pa.string())
    columns["labels"], names = _label_ids(given)
    for name, default in (("start_s", 0.0), ("duration_s", None), ("split", ""), ("fold", -1)):
        kind = MANIFEST_SCHEMA.field(name).type
        column = table[name] if name in table.column_names else pa.nulls(table.num_rows, kind)
        columns[name] = column.cast(kind) if default is None else pc.fill_null(column.cast(kind), default)
    clips = [columns[field.name].cast(field.type) for field in MANIFEST_SCHEMA]
    return pa.table(clips, schema=MANIFEST_SCHEMA), names


def _label_ids(column: pa.ChunkedArray) -> tuple[pa.Array, list[str]]:
    """Lists of label ids, and the names in the order of their ids, from lists of names or texts as "dog;bark"."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    if not pa.types.is_list(lists.type) and not pa.types.is_large_list(lists.type):
        lists = pc.split_pattern(pc.fill_null(lists.cast(pa.string()), ""), ";")
    found = pc.utf8_trim_whitespace(pc.fill_null(pc.list_flatten(lists).cast(pa.string()), ""))
    rows = pc.list_parent_indices(lists).to_numpy()
    filled = pc.not_equal(found, "")
    found, rows = found.filter(filled), rows[filled.to_numpy(zero_copy_only=False)]
    names = sorted(found.unique().to_pylist())
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(lists)))])
    ids = pc.index_in(found, value_set=pa.array(names, pa.string()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), ids), names
