"""The README's commands are accepted by the commands they name, and what it states as fact still is one."""

import re
import shlex
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers.training_state import save_run

from ajepa.config import PRESETS
from pipelines import ablate, demo, embed, export, finetune, preprocess, pretrain, probe

README = (Path(__file__).parents[1] / "README.md").read_text()
PARSERS = {
    command.__name__.rpartition(".")[2]: command.parse_args
    for command in (ablate, demo, embed, export, finetune, preprocess, pretrain, probe)
}
COMMANDS = re.findall(r"python pipelines/(\w+)\.py ([^\n#`]*)", README)


def test_the_readme_has_commands():
    assert {name for name, _ in COMMANDS} >= set(PARSERS) - {"demo"}


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_a_command_of_the_readme_is_accepted(name, options):
    assert PARSERS[name](shlex.split(options)) is not None


def test_the_preset_table_is_that_of_the_presets():
    for name, config in PRESETS.items():
        line = next(x for x in README.splitlines() if x.startswith(f"| `{name}` |"))
        model = config.model
        assert f"{model.depth} x {model.width}" in line
        assert f"{model.predictor_depth} x {model.predictor_width}" in line
        assert f"{model.crop_frames / 100:.2f} s" in line


@pytest.fixture(scope="module")
def names_of_the_three_lines(small_dataset, tmp_path_factory):
    """Everything the three lines define, run on a run and a file made here."""
    folder = tmp_path_factory.mktemp("readme")
    save_run(folder / "run", small_dataset, 1)
    soundfile.write(folder / "dog.wav", np.sin(np.arange(44_100) / 20), 44_100)
    snippet = re.search(r"```python\n(import ajepa, soundfile\n.*?)```", README, re.DOTALL)[1]
    assert len([line for line in snippet.splitlines() if line and not line.startswith("import")]) == 3
    names = {"run": str(folder / "run")}
    exec(snippet.replace('"runs/nano"', "run").replace('"dog.wav"', f'"{folder}/dog.wav"'), names)
    return names


def test_three_lines_make_a_vector(names_of_the_three_lines):
    vector = names_of_the_three_lines["vector"]
    assert vector.shape == (1, names_of_the_three_lines["encoder"].width) and vector.isfinite().all()


def test_the_lines_after_them_run(names_of_the_three_lines):
    names = dict(names_of_the_three_lines)
    snippet = re.search(r"```python\n(frames, times_ms.*?)```", README, re.DOTALL)[1]
    exec(snippet.replace('"runs/nano"', "run").replace("layers=[2, 4]", "layers=[1, 2]"), names)
    width = names["encoder"].width
    assert names["frames"].shape == (1, len(names["times_ms"]), width)
    assert names["patches"].shape == (1, 8 * names["columns"], width)
    assert names["vectors"].shape == (2, 2 * 16 * width)
    assert names["encoder"].precision == "bf16"


def test_the_snippet_for_pandas_reads_a_shard(small_dataset):
    snippet = re.search(r"```python\nimport numpy as np, pandas as pd\n(.*?)```", README, re.DOTALL)[1]
    path = f"{small_dataset.path}/{small_dataset.shards[0].name}"
    names = {"np": np, "pd": pd}
    exec(snippet.replace("data/sounds/status=ok/shard-00000.parquet", path), names)
    assert names["log_mel"].shape == (128, names["row"].num_frames)


def test_the_query_for_duckdb_counts_the_clips(small_dataset):
    query = re.search(r"```sql\n(.*?)```", README, re.DOTALL)[1]
    rows = duckdb.sql(query.replace("data/sounds", small_dataset.path)).fetchall()
    assert {tuple(labels): count for labels, count, _ in rows} == {(i,): 10 for i in range(4)}
    assert abs(sum(hours for *_, hours in rows) - small_dataset.hours) < 1e-9
