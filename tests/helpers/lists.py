"""Lines of JSON lists, and lhotse's recordings and cuts."""

import json
from typing import Any


def lines(*rows: dict[str, Any]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def recording(name: str, file: str, rate: int = 16_000, samples: int = 16_000, **others: Any) -> dict[str, Any]:
    """A recording of lhotse's."""
    return {
        "id": name, "sources": [{"type": "file", "channels": [0], "source": file}], "sampling_rate": rate,
        "num_samples": samples, "duration": samples / rate, "channel_ids": [0], **others,
    }  # fmt: skip


def cut(name: str, file: str, start: float = 0.25, duration: float = 0.5, **others: Any) -> dict[str, Any]:
    """A cut of a recording of its own."""
    return {
        "id": name, "start": start, "duration": duration, "channel": 0, "supervisions": [],
        "recording": recording(f"rec-{name}", file), "type": "MonoCut", **others,
    }  # fmt: skip


def supervision(text: str, **others: Any) -> dict[str, Any]:
    """What is said in a cut."""
    return {"id": "s", "recording_id": "r", "start": 0, "duration": 1, "channel": 0, "text": text, **others}
