"""Which column of a Parquet file is what: as named by the user, as the Hub's metadata says, or by what it is called."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ajepa.errors import UserError

OURS = ("audio", "clip_id", "labels", "split", "fold")  # what --columns can name
IDS = ("clip_id", "id", "video_id", "audio_id", "utt_id", "ytid", "key", "__key__", "filename", "file_name", "fname",
       "name", "path", "file")  # fmt: skip
LABELS = ("labels", "label", "category", "categories", "class", "classes", "class_name", "tags", "tag", "species",
          "genre", "human_labels", "target")  # fmt: skip
SPLITS, FOLDS = ("split", "subset", "partition"), ("fold", "folds")
NUMBERS = ("target", "label_id", "class_id", "classID", "category_id")  # of the names in another column
AUDIO = ("audio", "sound", "wav", "flac", "mp3", "bytes", "content", "path", "file", "file_name", "filename")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; "" where there is none."""

    audio: str
    ids: tuple[str, ...]  # in the order in which they are tried
    labels: str
    numbers: str  # of the labels' names, where another column has them
    split: str
    fold: str
    class_names: tuple[str, ...] = ()  # of labels that are numbers
    left_out: tuple[str, ...] = ()
    ids_are_given: bool = False

    @property
    def small(self) -> tuple[str, ...]:
        """What planning reads."""
        named = (*self.ids, self.labels, self.numbers, self.split, self.fold)
        return tuple(dict.fromkeys(name for name in named if name))

    def remark(self) -> str:
        """What was taken for what."""
        ids = self.ids[0] if self.ids else "the paths of the sound, or file and row"
        parts = [f"sound from {self.audio!r}", f"ids from {ids!r}" if self.ids else f"ids from {ids}"]
        parts += [f"{what} from {name!r}" for what, name in
                  (("labels", self.labels), ("splits", self.split), ("folds", self.fold)) if name]  # fmt: skip
        others = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"columns: {', '.join(parts)}{others}"


def find_columns(schema: pa.Schema, given: Mapping[str, str], where: str) -> Columns:
    """Choose the columns of a file.

    Args:
        given: their names by OURS, of those that the user named.
        where: the file, for messages.

    Raises:
        UserError: a name that is not there, no sound, or several columns that may be it.
    """
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where!r} has the column {twice[0]!r} twice: remove one")
    for ours, theirs in given.items():
        if theirs not in (*names, ""):
            raise UserError(
                f"--columns {ours}={theirs}: {where!r} has no column {theirs!r} (it has: {', '.join(names)})"
            )
    features = _features(schema)
    audio = given.get("audio") or _audio(schema, features, where)
    if not holds_sound(schema.field(audio).type):
        raise UserError(f"the column {audio!r} of {where!r} holds {schema.field(audio).type}, not bytes or paths")
    labels = given.get("labels", next((n for n in LABELS if n in names and n != audio), ""))
    names_of_classes = class_names(schema, labels)
    numbers = ""
    if labels and not names_of_classes and pa.types.is_string(schema.field(labels).type):
        numbers = next((n for n in NUMBERS if n in names and pa.types.is_integer(schema.field(n).type)), "")
    ids = tuple(n for n in IDS if n in names and n != audio)
    ids = ids if "clip_id" not in given else (given["clip_id"],) if given["clip_id"] else ()
    if not given.get("clip_id"):
        ids = tuple(n for n in ids if is_text_or_number(schema.field(n).type))
    for name in (*ids, given.get("split", ""), given.get("fold", "")):
        if name and not is_text_or_number(schema.field(name).type):
            raise UserError(f"the column {name!r} of {where!r} holds {schema.field(name).type}, not texts or numbers")
    plain = [n for n in names if is_text_or_number(schema.field(n).type)]
    split = given.get("split", next((n for n in SPLITS if n in plain), ""))
    fold = given.get("fold", next((n for n in FOLDS if n in names), ""))
    used = {audio, *ids, labels, numbers, split, fold}
    left_out = tuple(n for n in names if n not in used)
    return Columns(audio, ids, labels, numbers, split, fold, names_of_classes, left_out, bool(given.get("clip_id")))


def holds_sound(kind: pa.DataType) -> bool:
    """Whether a type can be sound: bytes, paths, or a struct of both."""
    if pa.types.is_struct(kind):
        fields = {f.name: f.type for f in kind}
        return ("bytes" in fields and _is_binary(fields["bytes"])) or ("path" in fields and _is_text(fields["path"]))
    return _is_binary(kind) or _is_text(kind)


def parts_of(kind: pa.DataType, name: str) -> tuple[str, str]:
    """Leaf columns of the bytes and of the paths of the sound; "" where there is none."""
    if pa.types.is_struct(kind):
        fields = {f.name for f in kind}
        return tuple(f"{name}.{part}" if part in fields else "" for part in ("bytes", "path"))  # type: ignore[return-value]
    return ("", name) if _is_text(kind) else (name, "")


def _audio(schema: pa.Schema, features: Mapping[str, Any], where: str) -> str:
    declared = [
        n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "Audio" and n in schema.names
    ]
    structs = [f.name for f in schema if pa.types.is_struct(f.type) and holds_sound(f.type)]
    named = [n for n in AUDIO if n in schema.names]
    binary = [f.name for f in schema if _is_binary(f.type)]
    texts = [n for n in named if _is_text(schema.field(n).type)]
    for candidates in (declared, structs, [n for n in named if n in binary], binary, texts[:1]):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise UserError(
                f"{where!r} has several columns that may be the sound ({', '.join(candidates)}): choose one with "
                "--columns audio=NAME"
            )
    raise UserError(
        f"{where!r} has no column of bytes, paths, or both (it has: {', '.join(schema.names)}): name it with --columns "
        "audio=NAME"
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the Hugging Face metadata says of each column; nothing where it is damaged."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def class_names(schema: pa.Schema, labels: str) -> tuple[str, ...]:
    """Names of the classes of a column of numbers, as the file's own metadata has them."""
    return tuple(_class_names(_features(schema).get(labels)))


def _class_names(feature: Any) -> list[str]:
    """Names of a ClassLabel, or of a list of them."""
    while isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text_or_number(kind: pa.DataType) -> bool:
    """Whether a column can hold ids, splits or folds, as pandas's categories do too."""
    if pa.types.is_dictionary(kind):
        return is_text_or_number(kind.value_type)
    return _is_text(kind) or bool(pa.types.is_integer(kind))
