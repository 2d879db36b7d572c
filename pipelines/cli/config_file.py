"""Settings from a JSON file: what --config names. A run's own run.json, or any part of its settings."""

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ajepa.errors import UserError
from pipelines.cli.arguments import chosen_preset, option_value

C = TypeVar("C")


def starting_config(argv: Sequence[str], presets: Mapping[str, C], default: str) -> tuple[str, C]:
    """The preset and the settings that a command line's options start from: those of --preset, changed by the file of
    --config. Without --preset, the one that the file names, or `default`.

    Raises:
        UserError: no such preset or file, or a setting that there is not.
    """
    path = option_value(argv, "--config")
    content = {} if path is None else read_json(path)
    named = content.get("preset")
    preset = chosen_preset(argv, presets, named if isinstance(named, str) and named in presets else default)
    return preset, presets[preset] if path is None else changed(presets[preset], settings_in(content), path)


def config_from_file(path: str, base: C) -> C:
    """The settings of `base`, changed by a file's; errors as `starting_config`."""
    return changed(base, settings_in(read_json(path)), path)


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a local path or a URI.

    Raises:
        UserError: it cannot be read or is something else.
    """
    try:
        if "://" in path:
            from ajepa import storage  # pyarrow takes long to import

            text = storage.read_text(path)
        else:
            text = Path(path).expanduser().read_text()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"--config {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path!r} holds no JSON object")
    return content


def settings_in(content: dict[str, Any]) -> dict[str, Any]:
    """The settings in a run.json ("config"), a finetune.json ("settings" -> "config"), or the object itself."""
    inner = content.get("settings")
    if isinstance(inner, dict) and isinstance(inner.get("config"), dict):
        return dict(inner["config"])
    config = content.get("config")
    return dict(config) if isinstance(config, dict) else content


def changed(base: C, values: Mapping[str, Any], path: str, prefix: str = "") -> C:
    """The dataclass with these values instead of its own.

    Raises:
        UserError: a name or a type that does not fit; the message names setting and file.
    """
    kind: Any = type(base)
    hints, new = get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"--config {path!r}: there is no setting {prefix + name!r} (one of {', '.join(hints)})")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise UserError(f"--config {path!r}: {prefix + name!r} is a group of settings, not {value!r}")
            new[name] = changed(getattr(base, name), value, path, f"{prefix}{name}.")
        else:
            value = tuple(value) if isinstance(value, list) else value
            if not fits(value, hints[name]):
                raise UserError(f"--config {path!r}: {value!r} is no value for {prefix + name!r}")
            new[name] = value
    return dataclasses.replace(base, **new)  # type: ignore[type-var]


def fits(value: object, hint: Any) -> bool:
    """Whether a JSON value, with tuples for lists, has the type of a setting."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(items) and all(fits(v, a) for v, a in zip(value, items, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
