"""Tables of results in pages: `python -m ajepa.experiments.page` writes them from the JSON files beside tables.toml.

A page has them between `<!-- results: NAME -->` and `<!-- end -->`. A result that no table shows is a mistake: nothing
that was measured stays out of the pages unseen.
"""

import argparse
import dataclasses
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ajepa import storage
from ajepa.config import PRESETS, Config
from ajepa.errors import UserError, one_line
from ajepa.experiments.plan import configs_of
from ajepa.experiments.report import Line, column_of, keys_of, lines_of, markdown
from ajepa.experiments.results import Result, joined, require_one_recipe, require_results, write_results
from ajepa.experiments.settings import TABLES, with_steps

LIST = "notebooks/results/tables.toml"
START = re.compile(r"<!-- results: (\S+) -->\n")
BLOCK = re.compile(START.pattern + r"((?:(?!<!-- results:).)*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class PageTable:
    """One entry of the list: a table of the experiments with one probe set and the columns shown."""

    table: str
    base: Config
    data: str  # content hashes of the clips trained on and probed on
    probe: str
    columns: tuple[str, ...]
    values: tuple[str, ...] = ()  # of the table, by default its own
    equal_compute: bool = False

    @property
    def configs(self) -> dict[str, Config]:
        return configs_of(self.table, self.base, self.values, self.equal_compute)

    @property
    def keys(self) -> set[str]:
        return set(keys_of(self.configs, self.base, self.data).values())


def read_list(path: Path) -> tuple[list[Path], dict[str, PageTable]]:
    """Pages, and their tables by name.

    Raises:
        UserError: a list that cannot be read, or an entry that is incomplete or names what there is not.
    """
    try:
        content = tomllib.loads(path.read_text())
        hashes = content["datasets"]
        tables = {name: _entry(f"{path}: {name}", entry, hashes) for name, entry in content["tables"].items()}
        return [Path(os.path.normpath(path.parent / page)) for page in content["pages"]], tables
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _entry(where: str, entry: Mapping[str, Any], hashes: Mapping[str, str]) -> PageTable:
    known: dict[str, Mapping[str, object]] = {"table": TABLES, "preset": PRESETS, "data": hashes, "probe": hashes}
    for option, choices in known.items():
        if entry.get(option) not in choices:
            raise UserError(f"{where}: unknown {option} {entry.get(option)!r}: choose from {', '.join(choices)}")
    base = PRESETS[entry["preset"]]
    if "max_steps" in entry:
        base = with_steps(base, entry["max_steps"])
    return PageTable(
        entry["table"], base, hashes[entry["data"]], hashes[entry["probe"]], tuple(entry["columns"]),
        tuple(entry.get("values", ())), bool(entry.get("equal_compute", False)),
    )  # fmt: skip


def texts_of(tables: Mapping[str, PageTable], results: Mapping[str, Result]) -> dict[str, str]:
    """Each table as Markdown, of all seeds there are.

    Raises:
        UserError: no result for a table, or none for a column.
    """
    seeds = sorted({seed for result in results.values() for seed in result.seeds})
    computed: dict[PageTable, list[Line]] = {}  # intervals take a second; tables of other columns share them
    texts = {}
    for name, entry in tables.items():
        which = dataclasses.replace(entry, columns=())
        if which not in computed:
            computed[which] = lines_of(entry.table, entry.configs, entry.base, results, entry.data, entry.probe, seeds)
        if not computed[which]:
            raise UserError(f"{name}: there is no result of this table")
        try:
            texts[name] = markdown(computed[which], entry.columns)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    return texts


def hidden(tables: Iterable[PageTable], results: Mapping[str, Result]) -> list[str]:
    """Scores that stand in no table, as "result: probe set, column"."""
    shown = {(key, table.probe, column) for table in tables for key in table.keys for column in table.columns}
    found: dict[str, None] = {}
    for result in results.values():
        for score in (score for outcome in result.seeds.values() for score in outcome["scores"]):
            column = column_of(score["protocol"], score["pooling"])
            if (result.key, score["data"]["hash"], column) not in shown:
                found[f"{result.name}: {score['data']['name']}, {column}"] = None
    return list(found)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Name and present text of each table in a page.

    Raises:
        UserError: no such page, or a marker without its end.
    """
    try:
        text = page.read_text()
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}") from error
    blocks = {match.start(): (match[1], match[2].strip()) for match in BLOCK.finditer(text)}
    for start in START.finditer(text):
        if start.start() not in blocks:
            raise UserError(f"{page}: <!-- results: {start[1]} --> without <!-- end -->")
    return list(blocks.values())


def run(path: Path, check: bool, added: Sequence[str]) -> int:
    pages, tables = read_list(path)
    blocks = [(page, name, text) for page in pages for name, text in blocks_of(page)]
    for page, name, _ in blocks:
        if name not in tables:
            raise UserError(f"{page}: unknown table {name!r}: {path} has {', '.join(tables)}")
    for name in tables:
        if name not in (placed for _, placed, _ in blocks):
            raise UserError(f"{path}: no page has <!-- results: {name} -->")
    folders = {folder: require_results(folder) for folder in (str(path.parent), *added)}
    require_one_recipe(folders)
    results = joined(folders.values())
    if added:
        write_results(results, str(path.parent))
    unseen = hidden(tables.values(), results)
    if unseen:
        raise UserError(f"{path}: {len(unseen)} scores stand in no table, the first is {unseen[0]}")
    texts = texts_of(tables, results)
    different = [(page, name) for page, name, text in blocks if text != texts[name]]
    for page, name in different:
        print(f"{page}: {name} {'differs from the results: run `make tables`' if check else 'written'}")
    if check:
        return 1 if different else 0
    for page in dict.fromkeys(page for page, _ in different):
        text = BLOCK.sub(lambda m: f"<!-- results: {m[1]} -->\n\n{texts[m[1]]}\n\n<!-- end -->", page.read_text())
        storage.write_text(str(page), text)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m ajepa.experiments.page", description="Write the tables of results in the pages."
    )
    made.add_argument("list", nargs="?", default=LIST, help="which tables the pages have; results lie beside it")
    one = made.add_mutually_exclusive_group()
    one.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page differs")
    one.add_argument("--add", nargs="+", default=[], metavar="FOLDER", help="results to join with the list's first")
    return made


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 2 for a user's mistake, 1 where a page differs."""
    args = parser().parse_args(argv)
    try:
        return run(Path(args.list), args.check, args.add)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
