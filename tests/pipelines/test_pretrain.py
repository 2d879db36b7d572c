"""The pretrain job: reports, resumption, refusals, and that two workers do what one does."""

import dataclasses
import json
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from helpers.faults import WIDE, assert_close_end, options
from helpers.imported import among, imported
from helpers.runs import tiny_config

from ajepa.checkpoints import latest_checkpoint, read_weights
from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.training.run_folder import append_history, read_history
from pipelines.jobs.pretrain import main
from pipelines.pretrain import PretrainArgs, parse_args
from pipelines.tracking import reporter


@pytest.fixture
def args(small_dataset, tmp_path, mlflow_uri):
    return PretrainArgs(
        data=small_dataset.path, output=str(tmp_path / "run"), num_workers=0, threads=1, mlflow_uri=mlflow_uri,
        config=tiny_config(), figures=False,
    )  # fmt: skip


@pytest.fixture
def copied(finished_run, tmp_path):
    """The arguments of a copy of the finished run."""
    shutil.copytree(finished_run.output, tmp_path / "copy")
    return dataclasses.replace(finished_run, output=str(tmp_path / "copy"))


def test_a_run_is_recorded(args, mlflow_uri):
    info = main(args)
    assert info.step == info.total_steps == 6
    assert [r["step"] for r in read_history(args.output)] == [0, 2, 3, 4, 6]
    run_json = json.loads(Path(args.output, "run.json").read_text())
    run = mlflow.MlflowClient(mlflow_uri).get_run(run_json["mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.params["model.width"] == "32"
    losses = mlflow.MlflowClient(mlflow_uri).get_metric_history(run.info.run_id, "loss/loss")
    assert [m.step for m in losses] == [2, 3, 4, 6]
    assert run.data.metrics["representation/effective_rank"] > 1


def test_without_figures_none_are_drawn(finished_run):
    assert not Path(finished_run.output, "figures").exists()


def test_the_same_command_again_does_nothing(finished_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(finished_run.output).rglob("*")}
    main(finished_run)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(finished_run.output).rglob("*")}
    client = mlflow.MlflowClient(finished_run.mlflow_uri)
    assert len(client.search_runs(["1"], f"params.output = '{finished_run.output}'")) == 1


def test_an_interrupted_run_resumes_into_the_same_mlflow_run(args, finished_run, mlflow_uri, monkeypatch):
    append = reporter.append_history

    def interrupt(output, reports):
        append(output, reports)
        if reports[-1]["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(reporter, "append_history", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(args)
    monkeypatch.undo()
    client = mlflow.MlflowClient(mlflow_uri)
    run_id = json.loads(Path(args.output, "run.json").read_text())["mlflow_run"]
    assert client.get_run(run_id).info.status == "KILLED"
    main(args)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.search_runs(["1"])) == 1
    assert [r["step"] for r in read_history(args.output)] == [0, 2, 3, 4, 6]
    a, b = (read_weights(latest_checkpoint(path)) for path in (args.output, finished_run.output))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_history_counts_replayed_steps_once_and_skips_a_torn_line(tmp_path):
    append_history(str(tmp_path), [{"step": s, "try": 1} for s in (0, 2, 4)])
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 6, "tr')
    append_history(str(tmp_path), [{"step": s, "try": 2} for s in (4, 6)])
    assert [(r["step"], r["try"]) for r in read_history(str(tmp_path))] == [(0, 1), (2, 1), (4, 2), (6, 2)]


def test_other_settings_into_the_same_run_are_refused(copied):
    with pytest.raises(UserError, match=r"train.lr: 0.001 -> 0.01"):
        main(dataclasses.replace(copied, config=tiny_config(lr=0.01)))
    assert main(dataclasses.replace(copied, config=tiny_config(lr=0.01), overwrite=True)).config.train.lr == 0.01


def test_a_run_of_an_earlier_version_goes_on(copied, capsys):
    """Its run.json and its checkpoints do not name what every run was trained for then."""
    for path in [Path(copied.output, "run.json"), *Path(copied.output).rglob("checkpoint.json")]:
        content = json.loads(path.read_text())
        del content["config"]["train"]["objective"]
        path.write_text(json.dumps(content))
    main(copied)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train.objective: jepa -> mae"):
        main(dataclasses.replace(copied, config=tiny_config(objective="mae")))


def test_another_dataset_into_the_same_run_is_refused(copied):
    run = Path(copied.output, "run.json")
    run.write_text(run.read_text().replace('"dataset_hash": "', '"dataset_hash": "0'))
    with pytest.raises(UserError, match="dataset: 0"):
        main(copied)


def test_the_preset_sets_the_defaults_and_options_change_them():
    args = parse_args(["--data", "d", "--output", "o", "--preset", "base", "--max-steps", "3", "--mask-ratio", "0.6"])
    assert args.config.model == PRESETS["base"].model
    assert (args.config.train.max_steps, args.config.mask.mask_ratio) == (3, 0.6)


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.ray)])
def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(args, num_workers, request):
    if num_workers:
        request.getfixturevalue("ray_session")
    config = tiny_config(lr=1e30, warmup_epochs=0)
    wild = dataclasses.replace(args, config=config, num_workers=num_workers, max_failures=0)
    with pytest.raises(UserError, match=r"step \d+: loss .*(lower --lr|another worker)"):
        main(wild)


@pytest.mark.ray
def test_two_workers_do_what_one_does(by_two, small_dataset, tmp_path, mlflow_uri):
    output = tmp_path / "by-one"
    main(parse_args(options(small_dataset.path, output, mlflow_uri, "--num-workers", "0", width=WIDE)))
    assert_close_end(by_two, output)
    losses = [[r["loss"] for r in read_history(str(run)) if "loss" in r] for run in (output, by_two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.ray
def test_the_controller_imports_no_model_code_and_workers_no_mlflow(by_two):
    controller, worker = (imported(by_two.parent, name) for name in ("controller", "worker"))
    assert "pipelines.rayjobs.train_workers" in controller and "ajepa.training.step" in worker
    assert among(controller, ["ajepa.model", "ajepa.training.step", "ajepa.training.loop", "matplotlib"]) == []
    assert among(worker, ["mlflow", "matplotlib"]) == []
