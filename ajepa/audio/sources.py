"""Where clips come from: each source lists its clips as one manifest table, and says what it left out."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow.compute as pc

from ajepa import storage
from ajepa.audio import corpora
from ajepa.audio.archives.each import Each, in_threads
from ajepa.audio.archives.hdf5_source import OURS as OF_HDF5
from ajepa.audio.archives.hdf5_source import hdf5
from ajepa.audio.archives.parquet_columns import OURS as OF_PARQUET
from ajepa.audio.archives.parquet_source import parquet
from ajepa.audio.archives.tar_source import OURS as OF_TAR
from ajepa.audio.archives.tar_source import webdataset
from ajepa.audio.columns import OURS as OF_LISTS
from ajepa.audio.columns import parse_columns
from ajepa.audio.decode import AUDIO_EXTENSIONS, AV_EXTENSIONS, has_av
from ajepa.audio.listing import is_text, list_names
from ajepa.audio.manifest import Manifest, in_reading_order, make_table, sorted_names
from ajepa.audio.pieces import with_passes
from ajepa.audio.tables import read_table
from ajepa.choices import SourceName
from ajepa.errors import UserError


@dataclass(frozen=True)
class SourceOptions:
    """Options that single sources have."""

    labels_from_folders: bool = False
    whole_videos: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs, of `columns.parse_columns`
    each: Each = in_threads


def load_manifest(
    source: SourceName,
    path: str,
    *,
    labels_from_folders: bool = False,
    whole_videos: bool = False,
    columns: Sequence[str] = (),
    each: Each = in_threads,
) -> Manifest:
    """List the clips of `path`, sorted by clip id, or by their places where files hold many.

    Args:
        columns: pairs OURS=THEIRS that say which columns of the input stand for ours.
        each: maps a function over the files that are looked at one by one, in order.

    Raises:
        UserError: nothing there, no audio, missing columns, a clip id that occurs twice, or containers that need PyAV
            where it is not installed.
    """
    options = SourceOptions(labels_from_folders, whole_videos, chosen_columns(source, columns), each)
    manifest = SOURCES[source](path, options)
    if not manifest.clips.num_rows:
        raise UserError(f"no clips in {path!r}")
    members = pc.struct_field(manifest.clips["locator"], ["name"])
    is_range = pc.equal(pc.struct_field(manifest.clips["locator"], ["kind"]), "bytes")
    require_decoders(pc.if_else(pc.fill_null(is_range, False), members, manifest.clips["uri"]).to_pylist())
    clips = in_reading_order(with_passes(manifest.clips))
    counts = pc.value_counts(clips["clip_id"])
    twice = [c["values"] for c in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist()]
    if twice:
        raise UserError(
            f"{len(twice)} clip ids occur more than once in {path!r}: {', '.join(twice[:5])} (a column clip_id names "
            "the clips)"
        )
    return dataclasses.replace(manifest, clips=clips)


def chosen_columns(source: SourceName, pairs: Sequence[str]) -> dict[str, str]:
    """The pairs OURS=THEIRS of --columns as a dict.

    Raises:
        UserError: one is no pair, or the source has no columns that a user could name.
    """
    if pairs and source not in WITH_COLUMNS:
        raise UserError(f"--columns is for --source {', '.join(WITH_COLUMNS)}, not for {source}")
    return parse_columns(pairs, WITH_COLUMNS.get(source, ()))


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
    files, macos = list_names(path)
    audio = [name for name in files if PurePosixPath(name).suffix.lower() in AUDIO_EXTENSIONS]
    unnameable = [name for name in audio if not is_text(name)]
    audio = [name for name in audio if is_text(name)]
    if not audio:
        what = "is empty" if not files else f"holds {len(files)} files, none with an audio extension"
        raise UserError(f"the input folder {path!r} {what} ({' '.join(sorted(AUDIO_EXTENSIONS))})")
    labels = [[PurePosixPath(name).parent.name] if labels_from_folders else [] for name in audio]
    if labels_from_folders and [""] in labels:
        raise UserError(f"--labels-from-folders: {audio[labels.index([''])]!r} lies in no subfolder of {path!r}")
    names = sorted_names({name for row in labels for name in row})
    table = make_table(audio, [storage.join(path, name) for name in audio], labels, names)
    other = len(files) - len(audio) - len(unnameable)
    remarks = [f"{other} files without an audio extension left out"] if other else []
    remarks += macos
    if unnameable:
        remarks.append(f"{len(unnameable)} audio files whose names are not UTF-8 left out: {unnameable[0]!r}")
    return Manifest(table, names, tuple(remarks))


SOURCES: dict[SourceName, Callable[[str, SourceOptions], Manifest]] = {
    "folder": lambda path, options: _folder(path, options.labels_from_folders),
    "manifest": lambda path, options: read_table(path, options.columns),
    "parquet": lambda path, options: parquet(path, options.columns),
    "webdataset": lambda path, options: webdataset(path, options.columns, options.each),
    "hdf5": lambda path, options: hdf5(path, options.columns, options.each),
    "esc50": lambda path, options: corpora.esc50(path),
    "speech_commands": lambda path, options: corpora.speech_commands(path),
    "audioset": lambda path, options: corpora.audioset(path, options.whole_videos),
}
# Names that --columns may give a column of the source.
WITH_COLUMNS: dict[SourceName, tuple[str, ...]] = {
    "manifest": OF_LISTS,
    "parquet": OF_PARQUET,
    "webdataset": OF_TAR,
    "hdf5": OF_HDF5,
}
