"""The fine-tuning job: what it writes and records, resumption, refusals, and that two workers do what one does."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.runs import tiny_config

from ajepa import load_classifier
from ajepa.config import PRESETS as PRETRAINING
from ajepa.errors import UserError
from ajepa.evaluation.features import encoder_features
from ajepa.finetuning.config import PRESETS, FinetuneConfig
from ajepa.finetuning.folds import plan_folds
from ajepa.finetuning.predict import score
from ajepa.finetuning.probe_head import probe_head
from ajepa.finetuning.run import read_test_logits
from ajepa.finetuning.summary import Row
from ajepa.inference.pretrained import load_encoder
from ajepa.shards.labels import read_labels
from ajepa.training.run_folder import read_history
from pipelines.finetune import FinetuneArgs, parse_args
from pipelines.jobs.finetune import main
from pipelines.tracking import reporter
from pipelines.tracking.lineage import pretraining

CONFIG = FinetuneConfig(epochs=2, warmup_epochs=0, batch_size=8, encoder_lr=1e-3, head_lr=1e-2, precision="fp32")
FIT = "seed-0-fold-2"


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run


@pytest.fixture
def args(run, small_dataset, tmp_path):
    return FinetuneArgs(
        encoder=run.output, data=small_dataset.path, output=str(tmp_path / "out"), num_workers=0, threads=1, fold=2,
        config=CONFIG,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finetuned:
    args: FinetuneArgs
    rows: list[Row]
    printed: str


@pytest.fixture(scope="module")
def done(run, small_dataset, tmp_path_factory):
    """A finished fine-tuning. Read only."""
    args = FinetuneArgs(
        encoder=run.output, data=small_dataset.path, output=str(tmp_path_factory.mktemp("finetuned") / "out"),
        num_workers=0, threads=1, fold=2, config=CONFIG,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        rows = main(args)
    return Finetuned(args, rows, printed.getvalue())


@pytest.fixture
def copied(done, tmp_path):
    """The arguments of a copy of the finished fine-tuning."""
    return dataclasses.replace(done.args, output=str(shutil.copytree(done.args.output, tmp_path / "copy")))


def runs(run, output):
    client = mlflow.MlflowClient(run.mlflow_uri)
    return client.search_runs(["1"], f"params.output = '{output}'")


def test_a_fine_tuning_writes_its_tables_and_is_recorded(run, done, small_dataset):
    (tuned, probe), folder = done.rows, Path(done.args.output)
    table = (folder / "table.md").read_text().strip()
    assert table in done.printed and "| fine-tuned |" in table and "| linear probe |" in table
    results = json.loads((folder / "results.json").read_text())
    assert results["scores"]["fine-tuned"]["mean"] == tuned.mean and results["metric"] == "accuracy"
    assert results["scores"]["linear probe"]["mean"] == probe.mean
    assert [c["class"] for c in results["classes"]] == list(small_dataset.label_names)
    assert (folder / "per_class.md").read_text().count("\n") == 2 + 4
    (recorded,) = runs(run, done.args.output)
    pretrained = json.loads(Path(run.output, "run.json").read_text())["mlflow_run"]
    assert recorded.info.status == "FINISHED"
    assert recorded.data.tags["ajepa.job"] == "finetune"
    assert recorded.data.tags["ajepa.pretrain_run"] == pretrained
    assert recorded.data.params["dataset_hash"] == small_dataset.content_hash
    assert recorded.data.params["encoder_digest"] == load_encoder(run.output).about["digest"]
    assert recorded.data.metrics["test/test_accuracy_fine_tuned"] == pytest.approx(tuned.mean)
    client = mlflow.MlflowClient(run.mlflow_uri)
    curve = client.get_metric_history(recorded.info.run_id, f"validation/validation_accuracy {FIT}")
    assert [r["step"] for r in read_history(str(folder / FIT))] == [m.step for m in curve] == [3, 6]
    assert {a.path for a in client.list_artifacts(recorded.info.run_id)} == {"results.json", "table.md", "per_class.md"}


def test_a_model_names_the_runs_it_comes_from(run, done):
    pretrained = json.loads(Path(run.output, "run.json").read_text())["mlflow_run"]
    model = Path(done.args.output, FIT, "model")
    notes = json.loads((model / "encoder.json").read_text())["notes"]
    (recorded,) = runs(run, done.args.output)
    assert (notes["mlflow_run"], notes["finetune_run"]) == (pretrained, recorded.info.run_id)
    assert pretraining(str(model)) == {"mlflow_run": pretrained}


def test_the_probe_beside_it_is_that_of_the_frozen_features(done, small_dataset):
    (fit,) = plan_folds(small_dataset, CONFIG, fold=2)
    features = encoder_features(load_encoder(done.args.encoder), small_dataset)[CONFIG.pooling]
    targets = read_labels(small_dataset).table
    head = probe_head(features, targets, False, fit.train, fit.validation, fit.final)
    assert done.rows[1].scores == {(0, 2): score(head.logits(features[fit.test]), targets[fit.test], False)}


def test_without_the_probe_there_is_one_row(args):
    (tuned,) = main(dataclasses.replace(args, probe=False))
    assert tuned.model == "fine-tuned"


def test_an_encoder_that_comes_with_the_package_is_fine_tuned(args, run, small_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(CONFIG, epochs=1)
    main(dataclasses.replace(args, encoder="nano", config=config, mlflow_uri=run.mlflow_uri, probe=False))
    found = json.loads((tmp_path / "out/finetune.json").read_text())
    assert found["settings"]["encoder_digest"] == load_encoder("nano").about["digest"]
    assert load_classifier(str(tmp_path / "out" / FIT / "model")).audio.width == 192


def test_the_accuracy_is_that_of_the_logits_kept(done, small_dataset):
    rows, logits = read_test_logits(done.args.output, FIT)
    labels = np.array([row[0] for row in small_dataset.read_columns(["labels"])["labels"].to_pylist()])
    assert done.rows[0].mean == pytest.approx((logits.argmax(axis=1) == labels[rows]).mean())


def test_the_same_command_again_does_nothing(run, done, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(done.args.output).rglob("*")}
    assert [row.mean for row in main(done.args)] == [row.mean for row in done.rows]
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in Path(done.args.output).rglob("*")}
    assert len(runs(run, done.args.output)) == 1


def test_an_interrupted_fine_tuning_resumes_into_the_same_mlflow_run(run, args, done, monkeypatch):
    append = reporter.append_history

    def interrupt(output, reports):
        append(output, reports)
        if reports[-1]["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(reporter, "append_history", interrupt)
    with pytest.raises(KeyboardInterrupt):
        main(args)
    monkeypatch.undo()
    assert [r.info.status for r in runs(run, args.output)] == ["KILLED"]
    main(args)
    assert [r.info.status for r in runs(run, args.output)] == ["FINISHED"]
    ours, theirs = (Path(a.output, FIT, "model", "encoder.safetensors") for a in (args, done.args))
    assert ours.read_bytes() == theirs.read_bytes()


def test_other_settings_into_the_same_folder_are_refused(copied):
    other = dataclasses.replace(copied, config=dataclasses.replace(CONFIG, head_lr=1e-3))
    with pytest.raises(UserError, match=r"config\.head_lr: 0\.01 -> 0\.001"):
        main(other)
    main(dataclasses.replace(other, overwrite=True))


def test_other_labels_into_the_same_folder_are_refused(copied):
    about = Path(copied.output, "finetune.json")
    about.write_text(about.read_text().replace('"bird",', ""))
    with pytest.raises(UserError, match="holds heads of 3 labels, the data have 4"):
        main(copied)


def test_from_scratch_an_encoder_of_a_preset_is_trained(args, run, small_dataset, capsys, monkeypatch):
    """It needs no pretraining, starts from the recipe of its own, and is recorded as what it is."""
    monkeypatch.setitem(PRETRAINING, "nano", tiny_config())
    scratch = dataclasses.replace(args, encoder=None, from_scratch="nano", mlflow_uri=run.mlflow_uri)
    trained, probe = main(scratch)
    assert (trained.model, probe.model) == ("supervised from scratch", "linear probe of random init")
    (recorded,) = runs(run, args.output)
    assert recorded.data.params["encoder"] == "nano from scratch" and "test/test_accuracy_supervised_from_scratch" in (
        recorded.data.metrics
    )
    model = load_encoder(str(Path(args.output, FIT, "model")))
    assert model.about["objective"] == "supervised" and model.about["dataset_hash"] == small_dataset.content_hash
    capsys.readouterr()
    assert [row.model for row in main(scratch)] == [trained.model, probe.model]
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="a fine-tuning with other settings"):
        main(dataclasses.replace(args, mlflow_uri=run.mlflow_uri))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder": None}, "name what is trained: --encoder ENCODER, or --from-scratch PRESET"),
        ({"from_scratch": "nano"}, "name what is trained"),
        ({"encoder": None, "from_scratch": "huge"}, "--from-scratch 'huge': choose from nano, "),
        ({"encoder": None, "from_scratch": "nano", "branch": "target"}, "--branch is one of a pretraining's encoders"),
        ({"encoder": None, "from_scratch": "nano", "output": None}, "--output is needed"),
    ],
)
def test_what_is_trained_must_be_clear(args, changes, match):
    with pytest.raises(UserError, match=match):
        main(dataclasses.replace(args, **changes))
    assert not Path(args.output).exists()


def test_from_scratch_has_a_recipe_of_its_own():
    assert parse_args(["--from-scratch", "nano", "--data", "d"]).config == PRESETS["from-scratch"]
    assert parse_args(["--from-scratch", "nano", "--data", "d", "--preset", "write-up"]).config == PRESETS["write-up"]


def test_the_preset_sets_the_defaults_and_options_change_them():
    args = parse_args(["--encoder", "e", "--data", "d", "--preset", "small-data", "--epochs", "7"])
    assert args.config == dataclasses.replace(PRESETS["small-data"], epochs=7)


@pytest.mark.ray
def test_two_workers_do_what_one_does(args, done, ray_session):
    double = dataclasses.replace(args, num_workers=2)
    single, both = done.rows[0], main(double)[0]
    assert single.scores.keys() == both.scores.keys()
    ours, theirs = (read_test_logits(a.output, FIT)[1] for a in (done.args, double))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    losses = [[r["loss"] for r in read_history(str(Path(a.output, FIT)))] for a in (done.args, double)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
