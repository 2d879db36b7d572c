"""Which of a list's own columns stand for the columns of the contract: by their names, or because --columns says so."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ajepa.errors import UserError

# What a user may give, by the names of the contract. The end of a clip is kept as its start and duration.
END = "end_s"
OURS = ("uri", "clip_id", "start_s", "duration_s", END, "split", "fold", "labels")

# Whole names, in words, of the file that holds the sound. An address may be where it once came from.
FILES = frozenset((
    "path", "file", "filename", "file_name", "filepath", "file_path", "fname", "audio", "audio_path", "audio_file",
    "audio_filename", "audio_file_name", "audio_filepath", "audio_file_path", "wav", "wav_path", "wav_file",
    "wav_filename", "wav_filepath", "sound_file", "sound_path",
))  # fmt: skip
ADDRESSES = frozenset(("url", "audio_url", "file_url", "uris", "location"))
IDS = frozenset((
    "id", "utt", "utt_id", "uttid", "utterance_id", "key", "uid", "uuid", "video_id", "youtube_id", "ytid", "audio_id",
    "sample_id", "example_id",
))  # fmt: skip
# What a word of a name means, once its unit and its general words are taken away. An offset may be an end as well.
MEANINGS = {
    **dict.fromkeys(("label", "labels", "class", "classes", "category", "categories", "tag", "tags", "target",
                     "targets", "species", "ebird", "scientific", "common"), "labels"),
    **dict.fromkeys(("start", "starts", "begin", "onset", "offset", "t0", "tmin", "xmin"), "start_s"),
    **dict.fromkeys(("end", "ends", "stop", "t1", "tmax", "xmax"), END),
    **dict.fromkeys(("duration", "dur", "length", "len", "seconds", "delta"), "duration_s"),
    **dict.fromkeys(("split", "splits", "subset", "partition", "set", "train", "test"), "split"),
    **dict.fromkeys(("fold", "folds", "kfold"), "fold"),
}  # fmt: skip
GENERAL = frozenset(("time", "times", "name", "names", "id", "ids", "code", "codes", "primary", "clip",
                     "event", "sound", "segment", "chunk", "data", "dataset", "cv", "k", "t", "is"))  # fmt: skip
JOINED = re.compile(r"(start|begin|end|stop|onset|offset)(time|times|sec|secs|seconds|ms)$")  # two words in one
SECONDS = frozenset(("s", "sec", "secs", "second", "seconds"))
OTHER_UNITS = frozenset((
    "ms", "msec", "millis", "millisecond", "milliseconds", "us", "min", "minutes", "frame", "frames", "sample",
    "samples",
))  # fmt: skip
TIMES = ("start_s", "duration_s", END)
# Words that mean a duration only with a unit (a length may be in samples), and a split only with its names.
DOUBTED = frozenset(("length", "len", "delta", "train", "test"))


def parse_columns(pairs: Sequence[str], ours: Sequence[str] = OURS) -> dict[str, str]:
    """The pairs OURS=THEIRS of --columns as a dict; THEIRS is "" where that column is not to be taken from the input.

    Args:
        ours: names that the left side may have.

    Raises:
        UserError: no pair, or a left side that is unknown or given twice.
    """
    chosen: dict[str, str] = {}
    for pair in pairs:
        name, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UserError(f"--columns {pair}: give pairs OURS=THEIRS, as uri=file; OURS is one of {', '.join(ours)}")
        if name not in ours:
            raise UserError(f"--columns {pair}: {name!r} is none of our columns ({', '.join(ours)})")
        if name in chosen:
            raise UserError(f"--columns names {name} twice: {chosen[name]!r} and {theirs!r}")
        chosen[name] = theirs
    return chosen


@dataclass(frozen=True)
class Columns:
    """Which columns of a list are taken."""

    taken: dict[str, str]  # ours -> theirs
    guessed: frozenset[str]  # ours that neither the list nor --columns calls so
    left_out: tuple[str, ...]  # theirs
    remarks: tuple[str, ...]


class _Meaning(NamedTuple):
    ours: str
    unit: str = ""  # other than seconds
    doubted: bool = False  # not to be taken without being asked


def match_columns(names: Sequence[str], chosen: Mapping[str, str], path: str) -> Columns:
    """Find the columns of the contract among those of a list.

    A name of the contract, in any case, stands for itself. Another one is taken where it can mean one thing alone:
    "audio_filepath" is the uri, "Begin Time (s)" the start. Beside a column that says the same it is left out.

    Args:
        chosen: what `parse_columns` returned; it comes first.

    Raises:
        UserError: a name occurs twice, one that was chosen is not there, there is no uri, or a column that seems to
            mean something does so in another unit or as one of several.
    """
    counts = Counter(_plain(name) for name in names if _plain(name))
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"the manifest {path!r} has the column {twice!r} twice: remove one")
    taken = _chosen(names, chosen, path)
    for name in names:
        if _plain(name) in OURS and _plain(name) not in chosen:
            taken[_plain(name)] = name
    exact = set(taken)
    rest = [name for name in names if name not in taken.values()]
    meanings = {name: meaning for name in rest if (meaning := _meaning(name, names)) is not None}
    doubts: dict[str, str] = {}
    for ours in OURS:
        candidates = {name: meaning for name, meaning in meanings.items() if meaning.ours == ours}
        if ours not in taken and ours not in chosen and candidates:
            good = _readable(ours, candidates)
            if len(good) == 1:
                taken[ours] = good[0]
            elif ours != "clip_id":  # clips need no names of their own
                doubts[ours] = _doubt(ours, good, candidates, path)
    if "start_s" in taken and not {"duration_s", END}.isdisjoint(taken):  # one is known by the other
        doubts = {ours: said for ours, said in doubts.items() if ours not in TIMES}
    for said in doubts.values():
        raise UserError(said)
    if END in taken and "duration_s" in taken:
        _settle_end(taken, exact, chosen, path)
    if not taken.get("uri"):
        raise UserError(_no_uri(names, path))
    return Columns(
        taken,
        frozenset(set(taken) - exact),
        tuple(name for name in names if name not in taken.values()),
        tuple(_remarks(taken, chosen, [n for n, meaning in meanings.items() if meaning.ours == "clip_id"])),
    )


def _chosen(names: Sequence[str], chosen: Mapping[str, str], path: str) -> dict[str, str]:
    found = {}
    for ours, theirs in chosen.items():
        matches = [n for n in names if n == theirs] or [n for n in names if _plain(n) == _plain(theirs)]
        if theirs and not matches:
            raise UserError(
                f"--columns {ours}={theirs}: the manifest {path!r} has no such column (it has: {listed(names)})"
            )
        if theirs:
            unit = _split_unit(_words(matches[0]))[1] if ours in TIMES else ""
            if unit:
                raise UserError(f"--columns {ours}={theirs}: seconds are needed, not {unit}; add a column in seconds")
            found[ours] = matches[0]
    return found


def _readable(ours: str, candidates: Mapping[str, _Meaning]) -> list[str]:
    """Those of the candidates that can be read as they are."""
    good = [name for name, meaning in candidates.items() if not meaning.unit and not meaning.doubted]
    if ours == "uri" and len(good) > 1:
        return [name for name in good if "_".join(_words(name)) not in ADDRESSES] or good
    return good


def _doubt(ours: str, good: list[str], candidates: Mapping[str, _Meaning], path: str) -> str:
    """What to say where not exactly one candidate can be read."""
    if good:
        return (
            f"the manifest {path!r} has the columns {' and '.join(map(repr, good))}, and each may be {ours}: say "
            f"which with --columns {ours}={good[0]}, or --columns {ours}= for none"
        )
    name, unit = next((name, meaning.unit) for name, meaning in candidates.items())
    said = f"the manifest {path!r} has a column {name!r}, which may be {ours}"
    if unit:
        return f"{said} but in {unit}: add a column in seconds, or do without it with --columns {ours}="
    return f"{said}: --columns {ours}={name} says so, and --columns {ours}= that it is not"


def _settle_end(taken: dict[str, str], exact: set[str], chosen: Mapping[str, str], path: str) -> None:
    """An end beside a start and a duration is left out, but not where the user rather means the end.

    Raises:
        UserError: a duration and an end without a start: which clip that is cannot be said.
    """
    end, duration = ((ours in chosen) + (ours in exact) for ours in (END, "duration_s"))
    if "start_s" not in taken and max(end, duration) < 2:
        raise UserError(
            f"the manifest {path!r} has the columns {taken['duration_s']!r} and {taken[END]!r} but no start: do "
            f"without one of them, with --columns {END}= or --columns duration_s="
        )
    del taken["duration_s" if end > duration else END]


def _remarks(taken: Mapping[str, str], chosen: Mapping[str, str], ids: list[str]) -> list[str]:
    remarks = [
        f"column {theirs!r} of the manifest taken for {'the end of the clip' if ours == END else repr(ours)}"
        for ours, theirs in taken.items() if theirs != ours and ours not in chosen
    ]  # fmt: skip
    if "clip_id" not in taken and "clip_id" not in chosen and len(ids) > 1:
        named = " and ".join(map(repr, ids))
        remarks.append(f"{named} may each name the clips: none is taken (--columns clip_id={ids[0]})")
    return remarks


def _no_uri(names: Sequence[str], path: str) -> str:
    said = f"the manifest {path!r} has no column `uri`, nor another for the sound files (it has: {listed(names)})"
    if any("/" in name or re.search(r"\.(wav|flac|mp3|ogg|opus|m4a|aiff?)$", name, re.I) for name in names):
        return f"{said}: its first line must name the columns"
    return f"{said}: say which one names them with --columns uri=COLUMN"


def listed(names: Sequence[str], most: int = 30) -> str:
    """Names of columns in one line, whatever they hold."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(" ".join(name.split())[:80] or "''" for name in names[:most]) + more


def _plain(name: str) -> str:
    return name.strip().removeprefix("\ufeff").casefold()


def _words(name: str) -> list[str]:
    """The words of a name, "classID" and "Class-ID" alike."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.removeprefix("\ufeff")).casefold())
    pairs = ((word, JOINED.match(word)) for word in words)
    return [part for word, pair in pairs for part in (pair.groups() if pair else (word,))]


def _split_unit(words: list[str]) -> tuple[list[str], str, bool]:
    """The words without a unit at their end, the unit if that is not seconds, and whether there was one."""
    if len(words) > 1 and words[-1] in SECONDS | OTHER_UNITS:
        return words[:-1], words[-1] if words[-1] in OTHER_UNITS else "", True
    return words, "", False


def _meaning(name: str, others: Sequence[str]) -> _Meaning | None:
    """What a name means in the contract, as "Begin Time (s)" and "startTime" do start_s. An offset beside another start
    is where the sound ends, as in DCASE's lists; alone it is where it starts.
    """
    words = _words(name)
    joined = "_".join(words)
    if joined in OURS:
        return _Meaning(joined)
    if joined in FILES | ADDRESSES:
        return _Meaning("uri")
    if joined in IDS:
        return _Meaning("clip_id")
    words, unit, measured = _split_unit(words)
    telling = [word for word in words if word not in GENERAL]
    meanings = {MEANINGS.get(word, "") for word in telling}
    if len(meanings) != 1 or meanings == {""}:
        return None
    (ours,) = meanings
    if telling == ["offset"]:
        beside = (_meaning(other, ()) for other in others if other != name)
        ours = END if any(meaning is not None and meaning.ours == "start_s" for meaning in beside) else ours
    if ours not in TIMES:
        return _Meaning(ours, "", not DOUBTED.isdisjoint(telling))
    return _Meaning(ours, unit, not measured and not DOUBTED.isdisjoint(telling))
