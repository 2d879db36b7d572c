"""The probe and ablate jobs: tables as files and in MLflow, trials as children of one parent."""

import dataclasses
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from helpers.runs import tiny_config

from ajepa.choices import POOLINGS
from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.pretrained import export_encoder, load_encoder
from pipelines import feature_cache
from pipelines.jobs import ablate, pretrain, probe


@pytest.fixture(scope="module")
def run(small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=str(folder / "run"), num_workers=0, threads=1,
        mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}", config=tiny_config(),
    )  # fmt: skip
    pretrain.main(args)
    return args


def arguments(run, small_dataset, tmp_path, **changes) -> probe.ProbeArgs:
    values = {
        "encoder": (run.output,), "data": small_dataset.path, "protocol": "knn", "seeds": 2, "threads": 1,
        "cache": str(tmp_path / "cache"), "output": str(tmp_path / "probe"), "mlflow_uri": run.mlflow_uri,
    } | changes  # fmt: skip
    return probe.ProbeArgs(**values)


def test_a_probe_writes_its_table_and_records_it(run, small_dataset, tmp_path, capsys):
    rows = probe.main(arguments(run, small_dataset, tmp_path, output=None))
    folder = Path(run.output, "probes", f"knn-{small_dataset.content_hash[:8]}")
    assert (folder / "table.md").read_text().strip() in capsys.readouterr().out
    assert len(pd.read_csv(folder / "table.csv")) == len(rows) == 2 * len(POOLINGS) + 2
    results = json.loads((folder / "results.json").read_text())
    assert results["about"]["encoders"][0]["digest"] == load_encoder(run.output).about["digest"]
    client = mlflow.MlflowClient(run.mlflow_uri)
    pretrained = json.loads(Path(run.output, "run.json").read_text())["mlflow_run"]
    (found,) = client.search_runs(["1"], f"tags.`ajepa.pretrain_run` = '{pretrained}'")
    assert found.data.metrics["accuracy_pretrained_mean"] == pytest.approx(rows[0].mean)
    assert found.data.params["dataset_hash"] == small_dataset.content_hash
    files = {a.path for a in client.list_artifacts(found.info.run_id)}
    assert files >= {"table.md", "table.csv", "per_class.md", "results.json", "confusion.png", "map.png"}
    assert all((folder / name).stat().st_size > 0 for name in files)


@pytest.mark.parametrize(
    ("changes", "behind"),
    [
        ({}, ""),
        ({"seeds": 5}, ""),
        ({"layers": "1,2", "combine": "weighted"}, "-layers-1-2-combine-weighted"),
        ({"pooling": ("mean", "bands mean+std")}, "-pooling-mean-bands-mean-std"),
        ({"branch": "context", "train_splits": ("train", "a/../b")}, "-branch-context-train-train-a-..-b"),
        ({"encoder": ("one", "two")}, "-encoders-2"),
    ],
)
def test_another_probe_has_another_default_folder(run, small_dataset, tmp_path, changes, behind):
    args = arguments(run, small_dataset, tmp_path, output=None, **changes)
    folder = probe.output_folder(args, run.output, small_dataset)
    assert folder == Path(run.output, "probes", f"knn-{small_dataset.content_hash[:8]}{behind}")


def test_checkpoints_and_exports_are_probed_side_by_side(run, small_dataset, tmp_path):
    checkpoint = sorted(Path(run.output, "checkpoints").iterdir())[0]
    export_encoder(run.output, str(tmp_path / "export"))
    args = arguments(run, small_dataset, tmp_path, encoder=(str(checkpoint), str(tmp_path / "export")), seeds=1)
    rows = probe.main(args)
    assert [r.features for r in rows] == ["pretrained"] * 3 + ["random init"] * 3 + ["log-mel statistics"] * 2
    assert all(set(r.by_label) == set(args.encoder) for r in rows[:3])


def test_features_are_computed_once_and_again_when_damaged(run, small_dataset, tmp_path, monkeypatch, capsys):
    args = arguments(run, small_dataset, tmp_path, seeds=1)
    wanted = [row.mean for row in probe.main(args)]
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == 2  # the encoder's and the random one's

    def fail(*args, **kwargs):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "encoder_features", fail)
        assert [row.mean for row in probe.main(args)] == wanted
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-4] + b"xxxx")
    assert [row.mean for row in probe.main(args)] == wanted
    assert "are damaged" in capsys.readouterr().err and files[0].read_bytes() == content


@pytest.mark.parametrize("changes", [{"combine": "weighted", "layers": "2,4"}, {"pooling": ("attentive",)}])
def test_layers_are_weighted_and_patches_attended_to(run, small_dataset, tmp_path, changes):
    rows = probe.main(arguments(run, small_dataset, tmp_path, protocol="linear", seeds=1, **changes))
    assert all(0 <= row.mean <= 1 for row in rows)
    assert {row.features for row in rows} >= {"pretrained", "random init"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder": ()}, "at least one run folder"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"layers": "1,9"}, "has the layers 1 to 4"),
        ({"layers": "one"}, "give numbers like 1,2,3"),
        ({"combine": "weighted", "protocol": "linear"}, "needs --layers"),
        ({"pooling": ("attentive",)}, "knn trains nothing"),
        ({"train_splits": ("train",)}, "--train-splits needs a test split"),
        ({"output": "s3://bucket/probe"}, "is a local folder"),
    ],
)
def test_mistakes_are_named(run, small_dataset, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        probe.main(arguments(run, small_dataset, tmp_path, **changes))


@pytest.mark.ray
def test_an_ablation_runs_resumes_and_prints_its_table(
    ray_session, small_dataset, tmp_path, mlflow_uri, monkeypatch, capsys
):
    monkeypatch.setitem(PRESETS, "nano", tiny_config(max_steps=3))
    args = ablate.AblateArgs(
        ablation="masking_ratio", values=("0.5", "0.7"), data=small_dataset.path, output=str(tmp_path / "ablation"),
        mlflow_uri=mlflow_uri, seeds=2,
    )  # fmt: skip
    table = ablate.main(args)
    assert table["setting"].tolist() == ["0.5", "0.7"] and table["seeds"].tolist() == [2, 2]
    for name in ("table.md", "table.csv", "figure.png"):
        assert (tmp_path / "ablation" / name).stat().st_size > 0
    client = mlflow.MlflowClient(mlflow_uri)
    parent = json.loads((tmp_path / "ablation" / "ablation.json").read_text())["mlflow_run"]
    children = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {(c.data.params["mask.mask_ratio"], c.data.params["train.seed"]) for c in children} == {
        (ratio, seed) for ratio in ("0.5", "0.7") for seed in ("0", "1")
    }
    assert all(c.info.status == "FINISHED" and "accuracy_pretrained_mean" in c.data.metrics for c in children)
    assert {a.path for a in client.list_artifacts(parent)} == {"table.md", "table.csv", "figure.png"}

    again = ablate.main(args)  # every trial is found finished
    assert again.equals(table)
    assert len(client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")) == 4

    with pytest.raises(UserError, match="another ablation"):
        ablate.main(dataclasses.replace(args, ablation="loss", values=("l1",)))


def test_every_ablation_builds_its_default_configs():
    for name, ablation in ablate.ABLATIONS.items():
        configs = [ablate.trial_config(name, PRESETS["nano"], value, 3) for value in ablation.default]
        assert len({c.to_json() for c in configs}) == len(configs)
        assert all(c.train.seed == 3 for c in configs)
