"""Where clips come from: each source lists its clips as one manifest table, and says what it left out."""

import dataclasses
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ajepa import storage
from ajepa.audio import corpora
from ajepa.audio.decode import AUDIO_EXTENSIONS
from ajepa.audio.manifest import MANIFEST_SCHEMA, Manifest, make_table
from ajepa.errors import UserError

SourceName = Literal["folder", "manifest", "esc50", "speech_commands", "audioset"]


def load_manifest(
    source: SourceName, path: str, *, labels_from_folders: bool = False, whole_videos: bool = False
) -> Manifest:
    """List the clips of `path`, sorted by clip id.

    Raises:
        UserError: nothing there, no audio, missing columns, or a clip id that occurs twice.
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
    clips = manifest.clips.sort_by("clip_id")
    counts = pc.value_counts(clips["clip_id"])
    twice = [c["values"] for c in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if twice:
        raise UserError(f"{len(twice)} clip ids occur more than once in {path!r}: {', '.join(twice[:5])}")
    return dataclasses.replace(manifest, clips=clips)


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
    columns = table.to_pydict()
    folder = str(PurePosixPath(path).parent) if not storage.is_uri(path) else path.rpartition("/")[0]
    uris = [u if storage.is_uri(u) or u.startswith("/") else storage.join(folder, u) for u in columns["uri"]]
    labels = [_split_labels(value) for value in columns.get("labels", [None] * len(uris))]
    names = sorted({name for row in labels for name in row})
    try:
        clips = make_table(
            columns.get("clip_id", columns["uri"]),
            uris,
            labels,
            names,
            start=columns.get("start_s"),
            duration=columns.get("duration_s"),
            split=columns.get("split"),
            fold=columns.get("fold"),
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise UserError(f"the manifest {path!r} has a column of the wrong type: {error}") from error
    remark = f"columns of the manifest left out: {', '.join(sorted(unknown))}"
    return Manifest(clips, names, (remark,) if unknown else ())


def _split_labels(value: object) -> list[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [name.strip() for name in value.split(";") if name.strip()]
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]
