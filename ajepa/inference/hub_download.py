"""Exports on the Hugging Face Hub: `hf://owner/repository` becomes a folder in the Hub's cache on this machine."""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ajepa.errors import UserError, one_line

SCHEME = "hf://"
FORM = "hf://OWNER/REPOSITORY[@REVISION][/FOLDER]"


class HubPath(NamedTuple):
    """Where an export lies."""

    repository: str  # OWNER/REPOSITORY
    revision: str | None  # a branch, a tag or a commit; None: the repository's main branch
    folder: str  # within the repository; empty: its top


def parse(uri: str) -> HubPath:
    """
    Raises:
        UserError: another form than `FORM`. A revision with slashes has them as %2F.
    """
    owner, name, folder = [*uri.removeprefix(SCHEME).strip("/").split("/", 2), "", ""][:3]
    name, at, revision = name.partition("@")
    if not owner or not name or (at and not revision) or ".." in folder.split("/"):
        raise UserError(f"{uri!r}: the form is {FORM}")
    return HubPath(f"{owner}/{name}", unquote(revision) or None, folder)


def download(uri: str, files: tuple[str, ...]) -> str:
    """The folder that holds these files of one commit. What the cache holds is not loaded again; where the Hub cannot
    be reached, the cache alone is asked. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always mean.

    Raises:
        UserError: another form, no such repository, revision or file, no permission, no network, or huggingface_hub is
            not installed.
    """
    repository, revision, folder = parse(uri)
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise UserError(f"{uri!r} needs huggingface_hub: pip install 'ajepa[hub]'") from None
    found, where = "", f"the folder {folder!r}" if folder else "the repository"
    for file in files:
        reasons = (  # the more special kinds first
            (errors.GatedRepoError, "ask its owner for access, then `hf auth login` or HF_TOKEN"),
            (errors.RepositoryNotFoundError, "no such repository, or a private one: then `hf auth login` or HF_TOKEN"),
            (errors.RevisionNotFoundError, f"the repository has no revision {revision!r}"),
            (errors.LocalEntryNotFoundError, f"the Hub cannot be reached, and the cache here does not hold {file}"),
            (errors.EntryNotFoundError, f"{where} has no {file}, so it is no export of pipelines/export.py"),
        )
        try:
            found = hf_hub_download(repository, file, subfolder=folder or None, revision=revision)
        except (errors.HFValidationError, errors.EntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
            reason = next((text for kind, text in reasons if isinstance(error, kind)), one_line(error))
            raise UserError(f"{uri!r}: {reason}") from error
        revision = Path(found).parents[len(Path(folder).parts)].name  # .../snapshots/COMMIT/FOLDER/FILE
    return str(Path(found).parent)
