"""JSON documents that earlier commands left. One that was cut or overwritten is refused by name."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from ajepa import storage
from ajepa.errors import UserError, one_line


def read_document(path: str, advice: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        advice: what to do about a damaged one.

    Raises:
        UserError: the file holds no JSON object.
        OSError: it cannot be read.
    """
    with refusing_damage(path, advice):
        content = json.loads(storage.read_text(path))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
        return content


@contextlib.contextmanager
def refusing_damage(path: str, advice: str) -> Iterator[None]:
    """Inside, what a document lacks, or has of another type than expected, is its damage; a UserError stays as it is.

    Raises:
        UserError: the document is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"{path!r} is damaged ({reason}): {advice}") from error


def require_types(content: dict[str, Any], **types: type | tuple[type, ...]) -> None:
    """Check, inside `refusing_damage`, that values are there and of these types.

    Raises:
        KeyError, TypeError: one is not.
    """
    for name, kind in types.items():
        if not isinstance(content[name], kind):
            raise TypeError(f"{name} is {type(content[name]).__name__}")
