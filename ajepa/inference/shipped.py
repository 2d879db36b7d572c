"""Encoders that come with the package, by name. How they were made is in ajepa/weights/README.md."""

import logging
import os
from pathlib import Path

from ajepa import storage
from ajepa.checkpoints import digest
from ajepa.errors import UserError
from ajepa.inference import hub_download

FOLDER = Path(__file__).parents[1] / "weights"
FILES = ("encoder.json", "encoder.safetensors")
DIGESTS = {"nano": "d1f06da5f63c53e16df0ed576b317c7f"}  # BLAKE2b-128 of the bytes of FILES, one after the other

logger = logging.getLogger(__name__)


def encoder_path(name: str) -> str:
    """The absolute path, or the URI, of the encoder that a user names: of what is there, else of one that comes with
    the package. So a folder `nano` is taken before the encoder of that name, with a warning. Of hf:// it is the folder
    in the cache of this machine.

    Raises:
        UserError: a name without separators that is neither, or the Hub does not give it.
    """
    if name.startswith(hub_download.SCHEME):
        return hub_download.download(name, FILES)
    path = storage.absolute(name)
    is_name = not storage.is_uri(name) and not {"/", os.sep} & set(name)
    if not is_name:
        return path
    if storage.path_type(path) != "missing":
        if name in DIGESTS:
            logger.warning("%r is taken from this folder, not the encoder of that name that comes with ajepa", name)
        return path
    if name in DIGESTS:
        return storage.absolute(str(FOLDER / name))
    raise UserError(
        f"the run or export {path!r} does not exist, and no encoder {name!r} comes with ajepa (there is: "
        f"{', '.join(DIGESTS)})"
    )


def is_shipped(name: str) -> bool:
    """Whether this is the name of an encoder that comes with the package."""
    return name in DIGESTS


def shipped_name(path: str) -> str | None:
    """The name of the encoder that comes with the package, where `encoder_path` gave this path for one."""
    return next((name for name in DIGESTS if storage.absolute(str(FOLDER / name)) == path), None)


def require_intact(name: str) -> None:
    """Compare an encoder that comes with the package with its digest.

    Raises:
        UserError: another one, or a file is missing.
    """
    again = f"the encoder {name!r} that comes with ajepa is damaged"
    try:
        found = digest(b"".join((FOLDER / name / file).read_bytes() for file in FILES))
    except OSError as error:
        raise UserError(f"{again} ({error}): install ajepa again") from error
    if found != DIGESTS[name]:
        raise UserError(f"{again}: its files have the digest {found}, not {DIGESTS[name]}; install ajepa again")
