"""Lists beside small sounds, and the clips that come of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ajepa.audio.manifest import MANIFEST_SCHEMA
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError

EMPTY: dict[str, Any] = {"start_s": 0.0, "duration_s": None, "split": "", "fold": -1, "labels": []}


@dataclasses.dataclass(frozen=True)
class Lists:
    """A folder of a.wav, b.wav and sub/c.wav, a second each, to write lists into."""

    folder: Path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def load(self, path: Path | str, *columns: str) -> tuple[list[dict[str, Any]], list[str], tuple[str, ...]]:
        """The clips without what is empty in them, the label names and the remarks."""
        manifest = load_manifest("manifest", str(path), columns=columns)
        names = set(MANIFEST_SCHEMA.names)
        rows = manifest.clips.to_pylist()
        assert all(set(row) == names for row in rows)
        empty = EMPTY | dict.fromkeys(names - set(EMPTY) - {"clip_id", "uri"})
        kept = [{k: v for k, v in row.items() if k not in empty or v != empty[k]} for row in rows]
        return kept, manifest.label_names, manifest.remarks

    def clip(self, clip_id: str, name: str, **others: Any) -> dict[str, Any]:
        return {"clip_id": clip_id, "uri": str(self.folder / name), **others}

    def refused(self, path: Path | str, *columns: str) -> str:
        with pytest.raises(UserError) as error:
            load_manifest("manifest", str(path), columns=columns)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def lists(tmp_path: Path, write_wav: Callable[..., str]) -> Lists:
    (tmp_path / "sub").mkdir()
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        write_wav(tmp_path / name, np.full(16_000, 0.1))
    return Lists(tmp_path)
