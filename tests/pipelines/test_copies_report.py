"""What people are told of copies and silent clips: lines, tables, a section of the report."""

import csv

import pytest

from ajepa.shards.duplicates import Copy, Findings
from pipelines.reports.copies_report import notes, section, write_lists

KEPT = Copy('b, "2"\n', "test", 1, "a", "train", 1, "shard-00000.parquet")
DROPPED = Copy("c", "train", 1, "a", "train", 1)


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (Findings([], [], []), []),
        (
            Findings([DROPPED], [], []),
            ["1 clip is a copy of another (identical log-mel), 1 of them moved to status=bad"],
        ),
        (
            Findings([KEPT, DROPPED], ["s"], ["t", "u"]),
            [
                "2 clips are copies of others (identical log-mel), 1 of them moved to status=bad; 1 of them in another "
                "split or fold than the clip they copy",
                "3 clips are silent, 2 of them moved to status=bad",
            ],
        ),
    ],
    ids=["none", "one", "all"],
)
def test_lines_count_and_say_where(found, lines):
    tables = ["duplicates.csv", "silent.csv"]
    assert notes(found, "report/") == [
        f"{line}, listed in report/{table}" for line, table in zip(lines, tables, strict=False)
    ]
    assert bool(section(found)) is bool(lines)


def test_tables_name_every_clip(tmp_path):
    paths = write_lists(Findings([KEPT, DROPPED], ["s"], ["t"]), tmp_path)
    duplicates, silent = [list(csv.reader(path.open(newline=""))) for path in paths]
    assert duplicates[1:] == [
        ['b, "2"\n', "test", "1", "a", "train", "1", "True", "ok"],
        ["c", "train", "1", "a", "train", "1", "False", "bad"],
    ]
    assert duplicates[0][6:] == ["elsewhere", "status"] and silent[1:] == [["s", "ok"], ["t", "bad"]]


def test_nothing_is_written_of_nothing(tmp_path):
    assert write_lists(Findings([], [], []), tmp_path) == [] and not list(tmp_path.iterdir())
