"""The ablate job: tables in its folder and in MLflow, trials as children of one parent, nothing done twice."""

import dataclasses
import json
from pathlib import Path

import mlflow
import pytest
from helpers.runs import tiny_config

from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.experiments import runner
from ajepa.experiments.results import read_results
from pipelines.ablate import AblateArgs
from pipelines.jobs import ablate


@pytest.mark.ray
def test_tables_are_filled_recorded_and_widened(ray_session, small_dataset, tmp_path, mlflow_uri, monkeypatch, capsys):
    """One setting with two seeds, then two settings with one: three trainings in all."""
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=3))
    output = tmp_path / "tables"
    args = AblateArgs(
        tables=("masking_ratio",), values=("0.5",), data=small_dataset.path, output=str(output), mlflow_uri=mlflow_uri,
        seeds=2, protocol=("knn",), threads=2,
    )  # fmt: skip
    client = mlflow.MlflowClient(mlflow_uri)

    def trainings():
        parent = json.loads((output / "ablation.json").read_text())["mlflow_run"]
        return client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")

    made = ablate.main(args)
    shown = capsys.readouterr().out
    (table,) = made.values()
    assert [(line.setting, line.seeds) for line in table.lines] == [
        ("0.5", 2), ("random init", 2), ("log-mel statistics", 1),
    ]  # fmt: skip
    name = "masking_ratio-shards"
    assert (output / f"tables/{name}.md").read_text() == table.markdown and table.markdown.strip() in shown
    assert (output / f"tables/{name}.csv").read_text() == table.csv
    assert (output / f"tables/{name}.png").read_bytes().startswith(b"\x89PNG")
    parent = json.loads((output / "ablation.json").read_text())["mlflow_run"]
    assert {a.path for a in client.list_artifacts(parent)} == {f"{name}.{kind}" for kind in ("md", "csv", "png")}
    children = {run.data.params["train.seed"]: run for run in trainings()}
    assert children.keys() == {"0", "1"} and all(run.info.status == "FINISHED" for run in children.values())
    means = [children[seed].data.metrics["probe/knn_mean_shards"] for seed in ("0", "1")]
    assert means == pytest.approx(table.lines[0].scores["knn", "mean"])
    assert all(run.info.run_name == f"0.5 seed {seed} (masking_ratio)" for seed, run in children.items())
    assert {run.data.tags["ajepa.masking_ratio"] for run in children.values()} == {"0.5"}
    assert client.get_run(parent).data.tags["mlflow.note.content"].startswith(f"**{table.title}**")
    results = read_results(str(output / "results"))
    (half,) = [r for r in results.values() if r.name.startswith("jepa-multiblock-0.5")]
    assert {outcome["machine"]["threads"] for outcome in half.seeds.values()} == {2}  # --threads, in probes as well

    before = {path: path.stat().st_mtime_ns for path in output.glob("trials/*/result.json")}
    (again,) = ablate.main(dataclasses.replace(args, values=("0.5", "0.7"), seeds=1)).values()
    assert [line.setting for line in again.lines][:2] == ["0.5", "0.7"]
    assert again.lines[0].scores["knn", "mean"] == table.lines[0].scores["knn", "mean"][:1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(trainings()) == 3 and "1 trials;" in capsys.readouterr().out

    # Results of another folder are enough for its table; nothing is run.
    elsewhere = dataclasses.replace(args, output=str(tmp_path / "elsewhere"), results=(str(output / "results"),))
    (known,) = ablate.main(elsewhere).values()
    assert known.markdown == table.markdown and not (tmp_path / "elsewhere/trials").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'"),
        ({"seeds": 0}, "--seeds and --threads must be positive"),
        ({"gpus_per_trial": 1.5}, "give a whole number or a fraction of one"),
        ({"gpus_per_trial": -1.0}, "give a whole number or a fraction of one"),
        ({"gpus_per_trial": 1.0, "num_workers": 2}, "is for trials without workers"),
        ({"tables": ("loss", "predictor"), "values": ("l1",)}, "--values are those of one table"),
        ({"results": ("/nowhere",)}, "'/nowhere' has no results"),
        ({"equal_compute": True, "preset": "base"}, "--equal-compute needs --max-steps"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(small_dataset, tmp_path, changes, match):
    args = AblateArgs(tables=("objective",), data=small_dataset.path, output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=match):
        ablate.main(dataclasses.replace(args, **changes))
    assert not (tmp_path / "out").exists()


def test_trials_of_another_recipe_or_version_are_not_mixed(small_dataset, tmp_path, mlflow_uri, monkeypatch):
    monkeypatch.setattr(runner.Work, "left", lambda _: [])
    args = AblateArgs(
        tables=("loss",), data=small_dataset.path, output=str(tmp_path / "out"), mlflow_uri=mlflow_uri, max_steps=5
    )
    assert ablate.main(args) == {}
    assert ablate.main(dataclasses.replace(args, tables=("all",))) == {}  # more tables are welcome
    with pytest.raises(UserError, match="trials of another recipe"):
        ablate.main(dataclasses.replace(args, max_steps=6))
    with pytest.raises(UserError, match="trials of another recipe"):
        ablate.main(dataclasses.replace(args, equal_compute=True))
    marker = Path(args.output, "ablation.json")
    old = json.loads(marker.read_text())
    del old["format_version"]
    marker.write_text(json.dumps(old | {"ablation": "loss"}))
    with pytest.raises(UserError, match="of another version of ajepa"):
        ablate.main(args)


def test_a_dry_run_computes_and_writes_nothing(small_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=3))
    monkeypatch.chdir(tmp_path)
    args = AblateArgs(tables=("all",), data=small_dataset.path, output="out", dry_run=True)
    assert ablate.main(args) == {}
    assert "66 trainings and 7 baselines, 3 seeds; 0 done already" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
