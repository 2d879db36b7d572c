"""Files of earlier commands that were cut or overwritten: one line that names the file, and exit code 2."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.runs import tiny_config

from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.inference.embeddings import KIND
from pipelines import ablate, embed, export, finetune, pretrain, probe
from pipelines.cli.command import run_command

SHARD = "status=ok/shard-00001.parquet"
DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\x00\xff no such format " * 40),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Where a default mlflow.db or a cache would appear."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=2))


def refused(command, argv, capsys) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args([str(word) for word in argv])))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return line


def on_shards(command, data, run, out, mlflow_uri):
    """A command's options, on a dataset."""
    more = ["--mlflow-uri", mlflow_uri, "--output", out]
    return {
        probe: ["--encoder", run, "--data", data, "--protocol", "knn", "--seeds", "1", *more],
        finetune: ["--encoder", run, "--data", data, "--num-workers", "0", "--threads", "1", *more],
        pretrain: ["--data", data, "--num-workers", "0", "--threads", "1", *more],
        embed: ["--encoder", run, "--input", data, *more],
        ablate: ["loss", "--data", data, "--seeds", "1", "--dry-run", *more],
    }[command]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", [probe, finetune, pretrain, embed, ablate], ids=lambda module: module.__name__)
def test_a_damaged_shard_is_named(command, damage, small_dataset, finished_run, tmp_path, mlflow_uri, capsys):
    data = tmp_path / "shards"
    shutil.copytree(small_dataset.path, data)
    DAMAGES[damage](data / SHARD)
    line = refused(command, on_shards(command, data, finished_run.output, tmp_path / "out", mlflow_uri), capsys)
    assert f"{data}/{SHARD}: {'is missing' if damage == 'gone' else 'cannot be read'}" in line
    assert "Restore the shard" in line and "--overwrite" in line
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


DOCUMENTS = {"cut": '{"config": {"model"', "a list": "[1, 2]", "no keys": "{}", "a number": "7", "no text": "\ud800"}


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogatepass"))
    return path


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=list(DOCUMENTS))
@pytest.mark.parametrize("command", [pretrain, finetune, ablate], ids=lambda module: module.__name__)
def test_a_damaged_description_of_an_output_is_named(
    command, content, small_dataset, finished_run, tmp_path, mlflow_uri, capsys
):
    out = tmp_path / "out"
    marker = {pretrain: "run.json", finetune: "finetune.json", ablate: "ablation.json"}[command]
    where = written(out / marker, content)
    argv = on_shards(command, small_dataset.path, finished_run.output, out, mlflow_uri)
    line = refused(command, [word for word in argv if word != "--dry-run"], capsys)
    assert (f"{str(where)!r} is damaged" in line and "choose another --output" in line) or (
        "of another version of ajepa" in line and command is ablate and content == "{}"
    )
    assert where.read_bytes() == content.encode(errors="surrogatepass")


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": 3, "dataset_hash": ""}'])
def test_run_json_of_a_finished_run_with_missing_keys(content, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run.output, run)
    written(run / "run.json", content)
    argv = ["--data", finished_run.data, "--output", run, "--num-workers", "0"]
    assert f"{str(run / 'run.json')!r} is damaged" in refused(pretrain, argv, capsys)


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=list(DOCUMENTS))
def test_a_damaged_plan_of_an_embedding_job_is_named(content, finished_run, sounds, tmp_path, capsys):
    out = tmp_path / "out"
    where = written(out / "_plan/embed.json", content)
    line = refused(embed, ["--encoder", finished_run.output, "--input", sounds, "--output", out], capsys)
    assert f"{str(where)!r} is damaged" in line or (content == "{}" and "unfinished job made from other input" in line)


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=list(DOCUMENTS))
def test_a_damaged_embeddings_json_is_named(content, tmp_path, capsys):
    where = written(tmp_path / "out/embeddings.json", content)
    line = refused(embed, ["--neighbours", "a.wav", "--output", tmp_path / "out"], capsys)
    assert f"{str(where)!r} is damaged" in line


@pytest.mark.parametrize(
    "missing", ["encoder.checkpoint", "encoder.source", "encoder.branch", "encoder.digest", "plan", "plan.pooling"]
)
def test_an_embeddings_json_without_what_neighbours_need_is_named(missing, tmp_path, capsys):
    encoder = {"checkpoint": "run", "source": "run", "branch": "target", "precision": "fp32", "digest": "0"}
    plan = {"level": "clip", "pooling": "mean", "layers": None, "max_seconds": 600.0}
    content = {
        "format_version": KIND.version, "level": "clip", "dimension": 3, "encoder": encoder, "label_names": [],
        "parts": [], "counts": {"ok": 0, "bad": 0}, "plan": plan,
    }  # fmt: skip
    part, _, name = missing.partition(".")
    del (content[part] if name else content)[name or part]
    where = written(tmp_path / "out/embeddings.json", json.dumps(content))
    line = refused(embed, ["--neighbours", "a.wav", "--output", tmp_path / "out"], capsys)
    assert f"{str(where)!r} is damaged (no '{name or part}'): embed the clips again" in line


@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=list(DOCUMENTS))
def test_a_damaged_encoder_json_is_named(content, small_dataset, finished_run, tmp_path, mlflow_uri, capsys):
    exported = tmp_path / "exported"
    export.main(export.parse_args([finished_run.output, str(exported), "--log-model", "off"]))
    written(exported / "encoder.json", content)
    argv = ["--encoder", exported, "--data", small_dataset.path, "--output", tmp_path / "out"]
    for command, more in ((probe, []), (finetune, ["--num-workers", "0"])):
        line = refused(command, [*argv, *more, "--mlflow-uri", mlflow_uri], capsys)
        assert f"{str(exported)!r} is damaged" in line or f"{str(exported / 'encoder.json')!r} is damaged" in line
        assert "export it again" in line


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"scores": [{}]}'])
def test_a_damaged_result_of_a_trial_is_named_before_any_trial(content, small_dataset, tmp_path, capsys):
    argv = ["loss", "--data", small_dataset.path, "--seeds", "1", "--dry-run", "--output", tmp_path / "out"]
    run_command(lambda: ablate.main(ablate.parse_args([str(word) for word in argv])))
    assert "0 done already" in capsys.readouterr().out
    from ajepa.experiments.runner import open_work, trial_folder

    work = open_work(
        ["loss"], PRESETS["nano"], small_dataset.path, str(tmp_path / "out"), probe_data=(), protocols=("knn",),
        finetune=False, seeds=(0,), values=(), equal_compute=False, results=(),
    )  # fmt: skip
    where = written(Path(trial_folder(work.output, work.plan.trials[0]), "result.json"), content)
    assert f"{str(where)!r} is damaged" in refused(ablate, argv, capsys)


def test_finished_embeddings_of_other_kinds_of_plan(finished_run, sounds, tmp_path, mlflow_uri, capsys):
    """embeddings.json is read twice: as a description and as a result."""
    info = {
        "format_version": 1, "level": "clip", "dimension": 2, "encoder": {}, "label_names": [], "parts": [],
        "counts": {"ok": 0, "bad": 0}, "plan": "none",
    }  # fmt: skip
    where = written(tmp_path / "out/embeddings.json", json.dumps(info))
    argv = ["--encoder", finished_run.output, "--input", sounds, "--output", tmp_path / "out"]
    assert f"{str(where)!r} is damaged" in refused(embed, [*argv, "--mlflow-uri", mlflow_uri], capsys)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_of_clips_of_an_unfinished_job_is_named(damage, tmp_path):
    """Read by the job's tasks, which hand a UserError on as one line."""
    from ajepa.audio.manifest import MANIFEST_SCHEMA
    from pipelines.rayjobs.plan import MANIFEST, read_block

    where = written(tmp_path / MANIFEST, "")
    pq.write_table(MANIFEST_SCHEMA.empty_table(), where)
    DAMAGES[damage](where)
    with pytest.raises(UserError, match=rf"{MANIFEST}: (is missing|cannot be read).*--overwrite"):
        read_block(str(tmp_path), 0)
