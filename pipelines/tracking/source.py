"""Where a run comes from: the command as it was typed, without what is secret in it, the version and the commit of the
code. MLflow's own tags, so that its tables show them."""

import functools
import getpass
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ajepa
import pipelines
from pipelines.cli.arguments import in_ray_job
from pipelines.tracking.mlflow_uri import shown

COMMANDS = Path(pipelines.__file__).resolve().parent
GIT_SECONDS = 5.0  # after which a repository counts as none
URI = re.compile(r"[a-zA-Z][\w+.-]*://.*", re.DOTALL)
PASSWORD = re.compile(r"(?<=://)([^/\s@:]*):[^/\s@]*@")


@dataclass(frozen=True)
class RunSource:
    """What made a run. Small: it travels to the processes that record for a command."""

    command: str | None  # "python pipelines/pretrain.py --data ..."; None where Python code called the job
    script: str | None  # "pipelines/pretrain.py"
    kind: str  # LOCAL or JOB
    user: str
    version: str
    commit: str | None
    changed: bool  # whether the files of the commit have changes

    def tags(self, job: str) -> dict[str, str]:
        """MLflow's tags of it.

        Args:
            job: of the run, "pretrain"; "" where it has no name.
        """
        tags = {"mlflow.source.type": self.kind, "mlflow.user": self.user, "ajepa.version": self.version}
        if self.script or job:
            tags["mlflow.source.name"] = self.script or f"pipelines/{job}.py"
        if self.commit is not None:
            tags |= {"mlflow.source.git.commit": self.commit, "mlflow.source.git.dirty": str(self.changed).lower()}
        return tags

    def markdown(self) -> str:
        """The command and the version for a description."""
        code = ""
        if self.commit is not None:
            code = f", commit {self.commit[:10]}{' and changes to it' if self.changed else ''}"
        mark = "``" if "`" in (self.command or "") else "`"
        # Not as a block: a long line of it would push the rest out of a run's page.
        command = "" if self.command is None else f"{mark}{self.command}{mark}\n\n"
        return f"{command}ajepa {self.version}{code}"


@functools.cache
def this_source() -> RunSource:
    """That of this process."""
    script = Path(sys.argv[0]).resolve() if sys.argv and sys.argv[0] else None
    found = script is not None and script.parent == COMMANDS
    name = f"{COMMANDS.name}/{script.name}" if script is not None and found else None
    commit, changed = commit_of(COMMANDS.parent)
    return RunSource(
        command=None if name is None else f"python {name} {command_line(sys.argv[1:])}".rstrip(), script=name,
        kind="JOB" if in_ray_job() else "LOCAL", user=user(), version=ajepa.__version__, commit=commit, changed=changed,
    )  # fmt: skip


def command_line(arguments: Sequence[str]) -> str:
    """Options as they were given, for a shell, without passwords and tokens of addresses."""
    return shlex.join(without_secrets(argument) for argument in arguments)


def without_secrets(argument: str) -> str:
    """An option or its value without what is secret in an address."""
    try:
        safe = URI.sub(lambda found: shown(found[0]), argument)
    except ValueError:  # no address that Python understands: nobody knows what is in it
        return URI.sub("***", argument)
    return PASSWORD.sub(r"\1@", safe)  # of an address behind another one


def commit_of(folder: Path) -> tuple[str | None, bool]:
    """(commit, whether its files have changes) of a git checkout; (None, False) of any other folder, or where git is
    missing, refuses or takes too long."""
    if not (folder / ".git").exists():  # a package in an environment inside someone's repository is no checkout
        return None, False
    git = ["git", "--no-optional-locks", "-C", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in a hook
    try:
        commit, changes = (
            subprocess.run(
                [*git, *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True, env=environment,
                stdin=subprocess.DEVNULL,
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, False
    return commit, bool(changes)


def user() -> str:
    """As MLflow names who made a run."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container without an entry for this user
        return "unknown"
