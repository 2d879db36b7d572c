"""The commands of all pages are accepted, their snippets run, their links lead somewhere, and what they state as fact
still is one."""

import json
import re
import shlex
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from helpers.training_state import save_run

import ajepa
from ajepa.config import PRESETS, ModelConfig
from ajepa.experiments.__main__ import parser as experiments_parser
from ajepa.experiments.page import parser as page_parser
from ajepa.finetuning.classifier import write_model
from ajepa.finetuning.config import PRESETS as FINETUNE_PRESETS
from ajepa.finetuning.model import Classifier
from ajepa.inference.pretrained import random_encoder
from ajepa.inference.transformers_folder import write_transformers
from pipelines import ablate, demo, embed, explore, export, finetune, predict, preprocess, pretrain, probe

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "ajepa/**/*.md", "pipelines/**/*.md", "cluster/*.md", "tests/**/*.md", "notebooks/**/*.md")
    for path in ROOT.glob(pattern)
)
TEXT = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
PARSERS = {
    command.__name__.rpartition(".")[2]: command.parse_args
    for command in (ablate, demo, embed, explore, export, finetune, predict, preprocess, pretrain, probe)
}
COMMANDS = sorted({
    found
    for page, text in TEXT.items()
    if not page.startswith("cluster")  # tests/cluster looks at those, which go over several lines
    for found in re.findall(r"python pipelines/(\w+)\.py ([^\n#`]*)", text)
})  # fmt: skip
MODULES = {"ajepa.experiments": experiments_parser(), "ajepa.experiments.page": page_parser()}
MODULE_COMMANDS = sorted(
    {found for text in TEXT.values() for found in re.findall(r"python -m (ajepa[\w.]*)([^\n#`]*)", text)}
)


def test_the_pages_have_commands():
    assert {name for name, _ in COMMANDS} >= set(PARSERS) - {"demo"}


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_a_command_of_a_page_is_accepted(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/nano").mkdir(parents=True)
    (tmp_path / "runs/nano/run.json").write_text(json.dumps({"config": PRESETS["nano"].to_dict()}))
    assert PARSERS[name](shlex.split(options)) is not None


@pytest.mark.parametrize(("name", "options"), [found for found in MODULE_COMMANDS if found[1]])
def test_a_module_that_a_page_runs_takes_its_options(name, options):
    assert MODULES[name].parse_args(shlex.split(options)) is not None


def test_the_front_page_is_short_and_names_every_command():
    assert len(TEXT["README.md"].splitlines()) <= 120
    for name in PARSERS:
        assert f"| [`{name}.py`](pipelines/README.md#{name})" in TEXT["README.md"], name
        assert f"\n## {name}\n" in TEXT["pipelines/README.md"], name


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert heading in slugs, f"{page}: {target}"


def test_files_named_in_tables_exist():
    for page in ("ajepa/training/README.md", "ajepa/shards/README.md"):
        for name in re.findall(r"`(\w+\.py)`", TEXT[page]):
            assert (ROOT / page).with_name(name).exists() or name == "preprocess.py", f"{page}: {name}"
    for name in re.findall(r"`((?:ajepa|pipelines|tests)/[\w/]+\.\w+)`", TEXT["CONTRIBUTING.md"]):
        assert (ROOT / name).exists(), name


def test_specifications_cited_in_the_code_exist():
    numbers = set(re.findall(r"^### (\d+)\.", TEXT["ajepa/README.md"], re.MULTILINE))
    cited = {
        number for path in (ROOT / "ajepa").rglob("*.py") for number in re.findall(r"\bspec (\d+)", path.read_text())
    }
    assert cited and cited <= numbers


def test_the_preset_tables_are_those_of_the_presets():
    lines = TEXT["ajepa/README.md"].splitlines()
    for name, config in PRESETS.items():
        line = next(x for x in lines if x.startswith(f"| `{name}` |"))
        model = config.model
        assert f"{model.depth} x {model.width}" in line
        assert f"{model.predictor_depth} x {model.predictor_width}" in line
        assert f"{model.crop_frames / 100:.2f} s" in line
    for name in FINETUNE_PRESETS:
        assert f"| `{name}` |" in TEXT["pipelines/README.md"]


def test_the_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and citation["version"] == version[1]
    assert citation["license"] == "Apache-2.0" and citation["authors"]


@pytest.fixture(scope="module", params=["README.md", "ajepa/inference/README.md"])
def names_of_the_three_lines(request, small_dataset, tmp_path_factory):
    """Everything the three lines define, run on a run and a file made here."""
    folder = tmp_path_factory.mktemp("readme")
    save_run(folder / "run", small_dataset, 1)
    soundfile.write(folder / "dog.wav", np.sin(np.arange(44_100) / 20), 44_100)
    found = re.search(r"```python\n(import ajepa, soundfile\n.*?)```", TEXT[request.param], re.DOTALL)
    assert found is not None
    snippet = found[1]
    assert len([line for line in snippet.splitlines() if line and not line.startswith("import")]) == 3
    assert 'ajepa.load_encoder("nano")' in snippet or request.param != "README.md"  # runs right after the installation
    names = {"run": str(folder / "run")}
    exec(snippet.replace('"runs/nano"', "run").replace('"dog.wav"', f'"{folder}/dog.wav"'), names)
    return names


def test_three_lines_make_a_vector(names_of_the_three_lines):
    vector = names_of_the_three_lines["vector"]
    assert vector.shape == (1, names_of_the_three_lines["encoder"].width) and vector.isfinite().all()


def test_a_fine_tuned_model_classifies_as_its_page_says(small_dataset, tmp_path):
    found = re.search(r"```python\n(classifier = .*?)```", TEXT["ajepa/inference/README.md"], re.DOTALL)
    assert found is not None
    model = ModelConfig(depth=1, width=32, heads=2)
    audio = random_encoder(model, 0, small_dataset.front_end, small_dataset.statistics)
    audio.about |= {"objective": "jepa", "branch": "target", "step": 0, "dataset_hash": ""}
    write_model(str(tmp_path), Classifier(audio, 3, "mean"), ("cat", "dog", "rain"), {}, multi_label=False)
    line = re.search(r'load_classifier\("(.*?)"\)', found[1])
    assert line is not None
    scope = {"ajepa": ajepa, "waveform": np.sin(np.arange(32_000) / 20), "sample_rate": 16_000}
    exec(found[1].replace(line[1], str(tmp_path)), scope)
    thirds = {"cat": pytest.approx(1 / 3), "dog": pytest.approx(1 / 3), "rain": pytest.approx(1 / 3)}
    assert dict(scope["best"][0]) == thirds  # the head starts from zeros
    assert scope["windows"].probabilities.shape == (1, len(scope["windows"].time_s[0]), 3)


def test_the_lines_after_them_run(names_of_the_three_lines):
    names = dict(names_of_the_three_lines)
    width = names["encoder"].width
    found = re.search(r"```python\n(frames, times_ms.*?)```", TEXT["ajepa/inference/README.md"], re.DOTALL)
    assert found is not None
    exec(found[1].replace('"runs/nano"', "run").replace("layers=[2, 4]", "layers=[1, 2]"), names)
    assert names["frames"].shape == (1, len(names["times_ms"]), width)
    assert names["patches"].shape == (1, 8 * names["columns"], width)
    assert names["vectors"].shape == (2, 2 * 16 * width)
    assert names["encoder"].precision == "bf16"


def test_the_lines_for_transformers_run(small_dataset, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed here")
    found = re.search(r"```python\n(from transformers.*?)```", TEXT["ajepa/inference/README.md"], re.DOTALL)
    assert found is not None
    save_run(tmp_path / "run", small_dataset, 1)
    encoder, wave = ajepa.load_encoder(tmp_path / "run"), np.sin(np.arange(32_000) / 20).astype(np.float32)
    write_transformers(str(tmp_path / "out"), encoder, {})
    names = {"wave": wave}
    exec(found[1].replace("encoders/transformers", str(tmp_path / "out")), names)
    np.testing.assert_allclose(names["output"].pooler_output.detach(), encoder([wave, wave[:8000]], 16_000), atol=1e-5)


def test_the_snippet_for_pandas_reads_a_shard(small_dataset):
    found = re.search(
        r"```python\nimport numpy as np, pandas as pd\n(.*?)```", TEXT["ajepa/shards/README.md"], re.DOTALL
    )
    assert found is not None
    path = f"{small_dataset.path}/{small_dataset.shards[0].name}"
    names = {"np": np, "pd": pd}
    exec(found[1].replace("data/sounds/status=ok/shard-00000.parquet", path), names)
    assert names["log_mel"].shape == (128, names["row"].num_frames)


def test_the_query_for_duckdb_counts_the_clips(small_dataset):
    found = re.search(r"```sql\n(.*?)```", TEXT["ajepa/shards/README.md"], re.DOTALL)
    assert found is not None
    rows = duckdb.sql(found[1].replace("data/sounds", small_dataset.path)).fetchall()
    assert {tuple(labels): count for labels, count, _ in rows} == {(i,): 10 for i in range(4)}
    assert abs(sum(hours for *_, hours in rows) - small_dataset.hours) < 1e-9
