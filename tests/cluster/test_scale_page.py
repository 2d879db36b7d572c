"""The figures of cluster/scale.md are those of its formulas."""

import re

from benchmarks.scale import CLUSTERS, PAGE, Measured, checkpoint_bytes, input_table, plan_table, with_tables
from helpers.training_state import save_run

from ajepa import storage

ROOT = PAGE.parents[1]


def test_the_tables_of_the_page_are_computed():
    """Written anew by `PYTHONPATH=.:tests python tests/benchmarks/scale.py`."""
    text = PAGE.read_text()
    assert input_table() in text and plan_table() in text
    assert with_tables(text) == text


def test_every_input_names_a_benchmark_that_is_there():
    for value in vars(Measured()).values():
        (name,) = re.findall(r"`(bench_\w+\.py)`", value.by)
        assert (ROOT / "tests/benchmarks" / name).exists()


def test_the_plan_has_one_column_a_cluster():
    assert all(line.count("|") == 3 + len(CLUSTERS) for line in plan_table().splitlines())


def test_a_checkpoint_has_the_bytes_of_the_formula_and_less_than_a_hundred_kilobytes_more(small_dataset, tmp_path):
    state = save_run(tmp_path, small_dataset, steps=1)
    found = sum(size for _, size in storage.list_files(str(tmp_path)))
    assert 0 < found - checkpoint_bytes(state.config) < 100_000
