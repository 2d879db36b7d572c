"""The output of a command: resumed by the same command, refused to another. `lock.claimed` keeps a second one away."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ajepa import storage
from ajepa.config_json import differences
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError
from pipelines.cli.arguments import in_ray_job

MAX_NAMED = 4  # differences in a message
ADVICE = "restore it, or choose another --output"  # about a damaged description


@dataclass(frozen=True)
class OutputType:
    """What a command makes at its output, and which files tell that it is there."""

    name: str  # "run folder"
    markers: tuple[str, ...]  # JSON files; the first one that is there describes the output
    leftovers: tuple[str, ...] = ()  # patterns of files left by a command that was killed before its first marker


@dataclass(frozen=True)
class FoundOutput:
    """What an earlier command of the same type left."""

    marker: str
    content: dict[str, Any]
    path: str  # of the file

    def require(self, **types: type | tuple[type, ...]) -> None:
        """Refuse a description that lacks a value or has one of another type.

        Raises:
            UserError: it does.
        """
        with self.refusing_damage():
            require_types(self.content, **types)

    def refusing_damage(self) -> AbstractContextManager[None]:
        """Inside, what the description lacks is its damage."""
        return refusing_damage(self.path, ADVICE)


def open_output(output: str, kind: OutputType, overwrite: bool = False) -> FoundOutput | None:
    """What an earlier command of this type left at the output; None where there is nothing to go on with, or where it
    is to be overwritten. Nothing is deleted here: call `storage.clear` once nothing more can be refused.

    Raises:
        UserError: the output holds something else, or its description is damaged.
    """
    names = storage.contents(output)
    marker = next((name for name in kind.markers if name in names), None)
    others = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in kind.leftovers)]
    if storage.path_type(output) == "file" or (marker is None and others):
        raise UserError(f"--output {output!r} exists and is no {kind.name}: choose another")
    if marker is None or overwrite:
        return None
    path = storage.join(output, marker)
    return FoundOutput(marker, read_document(path, ADVICE), path)


def refuse_changes(output: str, what: str, old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    """Refuse to go on with what was started with other settings.

    Args:
        what: the output holds, "a run with other settings".
        old: settings as read from the output.
        new: the command's own.

    Raises:
        UserError: they differ; the message names the differences.
    """
    changed = differences(dict(old), json.loads(json.dumps(new)))
    if changed:
        raise UserError(f"--output {output!r} holds {what} ({'; '.join(changed[:MAX_NAMED])}): {advice}")


def warn_relative_output(output: str) -> None:
    """A job's working directory is a temporary copy: say where a relative output really goes."""
    if in_ray_job() and not storage.is_uri(output) and not Path(output).is_absolute():
        print(
            f"warning: inside a Ray job the relative --output is {storage.absolute(output)!r}, a folder that goes "
            "with the job: give an absolute path or a URI to keep the result",
            file=sys.stderr,
        )
