"""Clips in the rows of HDF5 files: PANNs' packs of samples, and PaSST's and MaskSpec's of MP3 files."""

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ajepa import storage
from ajepa.audio.archives.each import Each
from ajepa.audio.archives.files import find_files
from ajepa.audio.archives.hdf5_rows import Hdf5Error, opened, sample_rate
from ajepa.audio.archives.splits import split_of
from ajepa.audio.class_table import read_classes
from ajepa.audio.decode import AUDIO_EXTENSIONS
from ajepa.audio.errors import AudioError
from ajepa.audio.labels import class_table_near
from ajepa.audio.manifest import Manifest, in_reading_order, locators, make_table
from ajepa.errors import UserError, one_line

OURS = ("audio", "clip_id", "labels")  # what --columns can name
ENDINGS = (".h5", ".hdf5", ".hdf")
NAMES, TARGET, SOUNDS = "audio_name", "target", ("waveform", "mp3", "audio", "flac", "wav")
SAMPLES = (np.dtype(np.int16), np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))
LAYOUT = "waveform [clips, samples] of int16 or floats, or mp3 [clips] of bytes, beside audio_name [clips]"


def hdf5(path: str, columns: Mapping[str, str], each: Each) -> Manifest:
    """List the rows of HDF5 files.

    Args:
        path: a file, a folder or a pattern; local or a URI.
        columns: "audio", "clip_id" and "labels" to the names of their arrays.
        each: maps over the files.

    Raises:
        UserError: h5py is not installed, no such files, or arrays of another layout.
    """
    if importlib.util.find_spec("h5py") is None:
        raise UserError("HDF5 files need h5py: pip install 'ajepa[hdf5]'")
    folder, names = find_files(path, ENDINGS, "HDF5 files")
    paths = [storage.join(folder, name) for name in names]
    found = list(each(functools.partial(_read, columns=dict(columns)), paths))
    parts = [(name, part) for name, part in zip(names, found, strict=True) if part is not None]
    if not parts:
        raise UserError(f"the HDF5 files of {path!r} hold no sound (expected: {LAYOUT})")
    left_out = [name for name, part in zip(names, found, strict=True) if part is None]
    remarks = [f"{len(left_out)} files without sound left out: {left_out[0]}"] if left_out else []
    ids = [clip for _, part in parts for clip in part["ids"]]
    classes = max(part["classes"] for _, part in parts)
    table = class_table_near(storage.join(folder, names[0]))
    label_names = [str(i) for i in range(classes)] if table is None else read_classes(table).names
    if len(label_names) < classes:
        raise UserError(f"{table!r} names {len(label_names)} classes, the files have {classes}")
    labels = [[label_names[i] for i in row] for _, part in parts for row in part["labels"]]
    if table is not None:
        remarks.append(f"names of labels from {table}")
    elif classes:
        remarks.append("labels are numbers: class_labels_indices.csv beside the files would name them")
    locator = pa.concat_arrays([
        locators("hdf5", len(part["ids"]), name=[part["sound"]] * len(part["ids"]), row=np.arange(len(part["ids"])))
        for _, part in parts
    ])  # fmt: skip
    clips = make_table(
        ids, [storage.join(folder, name) for name, part in parts for _ in part["ids"]], labels, label_names,
        split=[split_of(name) for name, part in parts for _ in part["ids"]], locator=locator,
    )  # fmt: skip
    return Manifest(in_reading_order(clips), label_names, tuple(remarks))


def _read(where: str, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """Ids and labels of a file, and the name of its sound; None where it has none, as PANNs' index files."""
    try:
        return storage.with_retries(where, lambda: _content(where, columns))
    except storage.UnreachableError:
        raise
    except (OSError, Hdf5Error) as error:
        raise UserError(f"{where!r} cannot be read as HDF5: {one_line(error)[:200]}") from error


def _content(where: str, columns: Mapping[str, str]) -> dict[str, Any] | None:
    import h5py

    with opened(where) as (file, _):
        sound = columns.get("audio") or next((name for name in SOUNDS if name in file), None)
        if sound is None:
            return None
        arrays = (sound, columns.get("clip_id") or NAMES)
        for name in arrays:
            if name not in file:
                raise UserError(f"{where!r} has no array {name!r} (it has: {', '.join(file)}); expected: {LAYOUT}")
        _check_sound(where, sound, file)
        named = file[columns.get("clip_id") or NAMES]
        if not isinstance(named, h5py.Dataset) or named.ndim != 1:
            raise UserError(f"{named.name!r} of {where!r} is no list of names; expected: {LAYOUT}")
        ids = _ids(named[:])
        rows = file[sound].shape[0]
        if len(ids) != rows:
            raise UserError(f"{where!r} has {len(ids)} names for {rows} rows of {sound!r}")
        target = columns.get("labels", TARGET)  # "": none
        if columns.get("labels") and target not in file:
            raise UserError(f"{where!r} has no array {target!r} (it has: {', '.join(file)})")
        labels, is_packed = np.zeros((rows, 0), bool), False
        if target and target in file:
            labels, is_packed = _labels(where, file[target], rows)
    # Of bits in bytes the last ones may be none: only those that are set tell how many classes there are.
    classes = int(np.flatnonzero(labels.any(axis=0)).max(initial=-1)) + 1 if is_packed else labels.shape[1]
    return {"ids": ids, "sound": sound, "classes": classes, "labels": [np.flatnonzero(row) for row in labels]}


def _check_sound(where: str, name: str, file: Any) -> None:
    """Refuse what is neither samples nor files."""
    import h5py

    array = file[name]
    if not isinstance(array, h5py.Dataset):
        raise UserError(f"{name!r} of {where!r} is a group, not an array; expected: {LAYOUT}")
    kind = h5py.check_vlen_dtype(array.dtype)
    if array.ndim == 1 and kind is not None and np.dtype(kind) == np.uint8:
        return
    if array.ndim != 2 or array.dtype not in SAMPLES:
        shape = "x".join(map(str, array.shape))
        raise UserError(f"{name!r} of {where!r} is {shape} of {array.dtype}; expected: {LAYOUT}")
    if "sample_rate" not in file.attrs:
        raise UserError(f"{where!r} has no attribute sample_rate, so its waveforms have no known speed: add it (in Hz)")
    try:
        sample_rate(file)
    except (AudioError, TypeError, ValueError) as error:
        raise UserError(f"the attribute sample_rate of {where!r} is no rate in Hz: {one_line(error)}") from error


def _ids(values: np.ndarray) -> list[str]:
    """Names without the extension of a sound: "Y1yX3r9c8yQ.wav" is "Y1yX3r9c8yQ"."""
    names = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
    return [
        name.rpartition(".")[0] if "." + name.rpartition(".")[2].lower() in AUDIO_EXTENSIONS else name for name in names
    ]


def _labels(where: str, array: Any, rows: int) -> tuple[np.ndarray, bool]:
    """[rows, classes] bool, and whether they were bits in bytes, whose values are others than 0 and 1.

    Raises:
        UserError: another shape, or values that are neither.
    """
    import h5py

    if not isinstance(array, h5py.Dataset) or array.ndim != 2 or len(array) != rows:
        shape = "x".join(map(str, getattr(array, "shape", ()))) or "no array"
        raise UserError(f"the labels of {where!r} are {shape}, not one row for each clip")
    target = array[:]
    if target.dtype == np.uint8 and (target > 1).any():
        return np.unpackbits(target, axis=1).astype(bool), True
    if target.dtype.kind not in "biuf" or not np.isin(target, (0, 1)).all():
        raise UserError(f"the labels of {where!r} hold other {target.dtype} than 0 and 1, one a class")
    return target.astype(bool), False
