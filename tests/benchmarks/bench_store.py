"""Clips read from a store that answers late: how much slower a shard is made, with files asked for ahead or not."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile
from benchmarks.common import ROUNDS, say, seconds, sound

from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.audio.read_ahead import Clip, Opener, open_clip
from ajepa.config import FrontEndConfig
from ajepa.shards import writer

FILES = 60
DELAY = 0.05  # seconds a request


@contextlib.contextmanager
def one_after_another(_: Sequence[Clip]) -> Iterator[Opener]:
    yield open_clip


@pytest.mark.parametrize("opener", [writer.read_ahead, one_after_another], ids=["ahead", "one after another"])
def test_a_request_of_50_ms(opener, s3, wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, sound(5, 44_100), 44_100, subtype="PCM_16")
    uris = [f"s3://sounds/{i}.wav" for i in range(FILES)]
    for i in range(FILES):
        s3.Object(f"{i}.wav").put(Body=path.read_bytes())
    clip = {"start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}
    clips = pa.Table.from_pylist([clip | {"clip_id": uri, "uri": uri} for uri in uris], MANIFEST_SCHEMA)
    monkeypatch.setattr(writer, "read_ahead", opener)
    for status in ("ok", "bad"):
        (tmp_path / f"status={status}").mkdir()

    def work() -> None:
        writer.write_shard(clips, 0, str(tmp_path), FrontEndConfig(clip_frames=512))

    ratios = []
    for _ in range(ROUNDS):
        wire.delay = 0.0
        quick = seconds(work)
        wire.delay = DELAY
        ratios.append(seconds(work) / quick)
    say("time of a shard of 60 clips of 5 s from S3, 50 ms a request, over that without", ratios)
    assert ratios
