"""Settings as JSON: built from it again, completed where an earlier version wrote it, and compared."""

import dataclasses
import json
from typing import Any, TypeVar

from ajepa.errors import UserError

T = TypeVar("T")
EARLIER = {"objective": "jepa"}  # what configs of earlier versions, which do not name it, were trained with


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The JSON values of a config, with those that earlier versions did not name yet."""
    return values | {"train": EARLIER | values["train"]}


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Build the dataclass `kind` from JSON values; lists become tuples, and keys must match exactly."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(values) != names:
        raise UserError(
            f"{kind.__name__} written by another version: "
            f"unknown {sorted(set(values) - names)}, missing {sorted(names - set(values))}"
        )
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two nested dicts differ, as "model.depth: 12 -> 6" lines."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif json.dumps(a) != json.dumps(b):
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
