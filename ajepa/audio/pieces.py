"""Pieces of MP3 recordings, decoded in one pass. To find a place in an MP3 file that was just opened all that lies
before it is read again, and what a decoder gives depends, in its last bits, on where it began. So several pieces are
decoded on and on from one place, which their manifest rows name: whatever block a piece is in, its samples are the
same."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ajepa.audio.containers import MP3, inspect, needs_av
from ajepa.audio.manifest import LOCATOR
from ajepa.audio.remote_file import read_failed
from ajepa.audio.soundfile_decode import PREROLL_S, OpenSound, UnreadError, opened
from ajepa.audio.streams import Samples

PASS_S = 600.0  # seconds decoded from one place
FEW = 4  # pieces of a recording, below which each is sought


def with_passes(clips: pa.Table) -> pa.Table:
    """Manifest rows with the place from which decoding begins, where a recording has FEW pieces or more."""
    places = pa.table({"uri": clips["uri"], **{f.name: pc.struct_field(clips["locator"], f.name) for f in LOCATOR}})
    places = places.select(["uri", "name", "offset", "row_group", "row"])
    counted = places.append_column("n", pa.array(np.arange(len(places)))).group_by(places.column_names)
    groups = counted.aggregate([("n", "list")])["n_list"].combine_chunks()
    sizes = pc.list_value_length(groups).to_numpy()
    many = np.zeros(len(places), bool)
    many[pc.list_flatten(groups).to_numpy()] = np.repeat(sizes >= FEW, sizes)
    many &= (clips["start_s"].to_numpy() > 0) | clips["duration_s"].is_valid().to_numpy()  # else it is the whole
    if not many.any():
        return clips
    found = clips["locator"].combine_chunks()
    fields = {f.name: pc.struct_field(found, f.name) for f in LOCATOR}
    fields["kind"] = pc.if_else(pa.array(many), pc.fill_null(fields["kind"], "file"), fields["kind"])
    start = np.floor(clips["start_s"].to_numpy() / PASS_S) * PASS_S
    fields["decoded_from_s"] = pa.array(start, pa.float64(), mask=~many)
    locator = pa.StructArray.from_arrays(list(fields.values()), fields=list(LOCATOR), mask=pc.is_null(fields["kind"]))
    return clips.set_column(clips.column_names.index("locator"), clips.schema.field("locator"), locator)


class Pieces:
    """Opens clips as `opener` does, but gives an `OpenSound` of an MP3 recording whose pieces are decoded in one pass.
    Every thread holds one.

    Args:
        used: is told of each clip that was not opened by `opener`.
        place: what clips may be pieces of.
    """

    def __init__(
        self,
        opener: Callable[[Any], AbstractContextManager[Any]],
        used: Callable[[Any], None],
        place: Callable[[Mapping[str, Any]], Hashable],
    ) -> None:
        self._opener, self._used, self._place = opener, used, place
        self._unfit: set[Hashable] = set()  # recordings of another kind, or that libsndfile does not read to their end
        self._local = threading.local()
        self._stacks: list[contextlib.ExitStack] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, clip: Mapping[str, Any]) -> Iterator[Any]:
        place = self._place(clip)
        from_s = (clip.get("locator") or {}).get("decoded_from_s")
        if from_s is None or place in self._unfit:
            with self._opener(clip) as stream:
                yield stream
            return
        held = self._held(place, from_s, clip)
        if not isinstance(held, OpenSound):  # opened once: what is read ahead counts its uses
            self._unfit.add(place)
            try:
                yield held
            finally:
                self._let_go()
            return
        try:
            yield held
        except BaseException as error:
            self._let_go()
            if isinstance(error, UnreadError):
                self._unfit.add(place)
            raise
        if read_failed(self._local.source):  # the decoder took it for the end of the file
            self._let_go()

    def is_unfit(self, clip: Mapping[str, Any]) -> bool:
        """Whether an UnreadError of this clip means that it must be opened anew."""
        return self._place(clip) in self._unfit

    def _held(self, place: Hashable, from_s: float, clip: Mapping[str, Any]) -> Any:
        """An OpenSound, or what `opener` gave of a clip that is of another kind, open until `_let_go`."""
        held: OpenSound | None = getattr(self._local, "sound", None)
        is_this = held is not None and (self._local.place, held.from_s) == (place, from_s)
        if held is not None and is_this and (held.at or 0) <= round(clip["start_s"] * held.sound.samplerate):
            self._used(clip)
            return held
        self._let_go()
        self._local.stack = stack = contextlib.ExitStack()
        with self._lock:
            self._stacks.append(stack)
        try:
            stream = stack.enter_context(self._opener(clip))
            if isinstance(stream, Samples):
                return stream
            found = inspect(stream)  # its position is 0 afterwards
            if found.name != MP3 or found.refused or found.start or found.patches or needs_av(found):
                return stream
            sound = stack.enter_context(opened(stream, found.seconds, from_s, PREROLL_S))
        except UnreadError:
            stream.seek(0)
            return stream
        except BaseException:
            self._let_go()
            raise
        self._local.place, self._local.sound, self._local.source = place, sound, stream
        return sound

    def _let_go(self) -> None:
        """Close what this thread holds; an error of its store comes out here."""
        self._local.place = self._local.sound = self._local.source = None
        stack, self._local.stack = getattr(self._local, "stack", None), None
        if stack is not None:
            with self._lock:
                self._stacks.remove(stack)
            stack.close()

    def close(self) -> None:
        with self._lock:
            stacks, self._stacks = self._stacks, []
        for stack in stacks:
            with contextlib.suppress(OSError):  # of a store that is away; the clips were read
                stack.close()
