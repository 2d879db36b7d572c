"""The probe and ablate jobs: tables as files and in MLflow, trials as children of one parent."""

import dataclasses
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from small_runs import tiny_config

from ajepa.config import PRESETS
from ajepa.errors import UserError
from ajepa.model.pooling import POOLINGS
from pipelines import ablate, pretrain, probe


@pytest.fixture(scope="module")
def run(small_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    args = pretrain.PretrainArgs(
        data=small_dataset.path, output=str(folder / "run"), num_workers=0, threads=1,
        mlflow_uri=f"sqlite:///{folder / 'mlflow.db'}", config=tiny_config(),
    )  # fmt: skip
    pretrain.main(args)
    return args


def test_a_probe_writes_its_table_and_records_it(run, small_dataset, capsys):
    rows = probe.main(probe.ProbeArgs(encoder=run.output, data=small_dataset.path, protocol="knn", random_seeds=2))
    folder = Path(run.output, "probes", f"knn-{small_dataset.content_hash[:8]}")
    assert (folder / "table.md").read_text().strip() in capsys.readouterr().out
    assert len(pd.read_csv(folder / "table.csv")) == len(rows) == 3 * len(POOLINGS)
    client = mlflow.MlflowClient(run.mlflow_uri)
    pretrained = json.loads(Path(run.output, "run.json").read_text())["mlflow_run"]
    found = client.search_runs(["1"], f"tags.`ajepa.pretrain_run` = '{pretrained}'")
    assert len(found) == 1
    assert found[0].data.metrics["accuracy_pretrained_mean"] == pytest.approx(rows[0].mean)
    assert {a.path for a in client.list_artifacts(found[0].info.run_id)} == {"table.md", "table.csv"}


def test_a_checkpoint_can_be_probed_alone(run, small_dataset, tmp_path):
    checkpoint = sorted(Path(run.output, "checkpoints").iterdir())[0]
    args = probe.ProbeArgs(
        encoder=str(checkpoint), data=small_dataset.path, protocol="knn", random_seeds=0,
        output=str(tmp_path / "p"), mlflow_uri=run.mlflow_uri,
    )  # fmt: skip
    wanted = [kind for kind in ("pretrained", "log-mel statistics") for _ in POOLINGS]
    assert [r.features for r in probe.main(args)] == wanted


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
