"""Commands of cluster/README.md, as they stand there."""

import re
import shlex

from helpers.faults import ROOT

PAGE = (ROOT / "cluster" / "README.md").read_text()


def commands(chapter: str, program: str) -> list[str]:
    """Those of a chapter that start with a program, each on one line."""
    text = PAGE.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line)) for line in lines if line.startswith(program)]


def with_other(line: str, **sizes: str | None) -> str:
    """A command with other values of its options, by their names with "_"; None: without the option.

    Raises:
        ValueError: it has no such option with a value.
    """
    words = line.split()
    for name, value in sizes.items():
        option = f"--{name.replace('_', '-')}"
        at = [word.partition("=")[0] for word in words].index(option)
        words[at : at + 1 + ("=" not in words[at])] = [] if value is None else [option, value]
    return " ".join(words)
