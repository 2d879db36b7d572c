"""The probe job: tables as files and in MLflow."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from ajepa import storage
from ajepa.choices import POOLINGS
from ajepa.errors import UserError
from ajepa.evaluation import feature_cache, heads
from ajepa.inference.pretrained import export_encoder, load_encoder
from ajepa.inference.shipped import FOLDER
from pipelines.jobs import probe
from pipelines.probe import ProbeArgs
from pipelines.reports.probe_report import OUTPUTS


@pytest.fixture
def run(finished_run, tmp_path, new_mlflow):
    """The arguments of a copy of the finished run, which a probe may write into, and a database of its own."""
    (tmp_path / "mlflow").mkdir()
    output = shutil.copytree(finished_run.output, tmp_path / "run")
    return dataclasses.replace(finished_run, output=str(output), mlflow_uri=new_mlflow(tmp_path / "mlflow"))


def arguments(run, small_dataset, tmp_path, **changes) -> ProbeArgs:
    values = {
        "encoder": (run.output,), "data": small_dataset.path, "protocol": "knn", "seeds": 2, "threads": 1,
        "cache": str(tmp_path / "cache"), "output": str(tmp_path / "probe"), "mlflow_uri": run.mlflow_uri,
    } | changes  # fmt: skip
    return ProbeArgs(**values)


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
    assert found.data.metrics["probe/accuracy_pretrained_mean"] == pytest.approx(rows[0].mean)
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
    assert folder == f"{run.output}/probes/knn-{small_dataset.content_hash[:8]}{behind}"


def test_a_probe_of_a_bucket_writes_to_it(run, small_dataset, s3, tmp_path):
    """Encoder and output at URIs; nothing of an earlier probe stays beside a later one's."""
    export_encoder(run.output, str(tmp_path / "exported"))
    for path in (tmp_path / "exported").iterdir():
        s3.Object(f"probed/{path.name}").put(Body=path.read_bytes())
    name = f"knn-{small_dataset.content_hash[:8]}"
    args = arguments(run, small_dataset, tmp_path, encoder=("s3://sounds/probed",), output=None)
    rows = probe.main(args)
    assert storage.contents(f"s3://sounds/probed/probes/{name}") == set(OUTPUTS)
    local = probe.main(dataclasses.replace(args, encoder=(str(tmp_path / "exported"),)))
    assert [row.mean for row in rows] == [row.mean for row in local]
    here = Path(tmp_path, "exported/probes", name)
    for file in ("table.md", "table.csv", "per_class.md", "per_class.csv"):
        assert storage.read_text(f"s3://sounds/probed/probes/{name}/{file}") == (here / file).read_text()
    probe.main(dataclasses.replace(args, figures=False))
    assert storage.contents(f"s3://sounds/probed/probes/{name}") == {n for n in OUTPUTS if not n.endswith(".png")}


def test_checkpoints_and_exports_are_probed_side_by_side(run, small_dataset, tmp_path):
    checkpoint = sorted(Path(run.output, "checkpoints").iterdir())[0]
    export_encoder(run.output, str(tmp_path / "export"))
    args = arguments(run, small_dataset, tmp_path, encoder=(str(checkpoint), str(tmp_path / "export")), seeds=1)
    rows = probe.main(args)
    assert [r.features for r in rows] == ["pretrained"] * 3 + ["random init"] * 3 + ["log-mel statistics"] * 2
    assert all(set(r.by_label) == set(args.encoder) for r in rows[:3])


def test_an_encoder_that_comes_with_the_package_is_probed_by_its_name(run, small_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = probe.main(arguments(run, small_dataset, tmp_path, encoder=("nano",), seeds=1))
    assert {row.features for row in rows} == {"pretrained", "random init", "log-mel statistics"}
    about = json.loads((tmp_path / "probe/results.json").read_text())["about"]
    assert about["encoder_digest"] == load_encoder("nano").about["digest"]
    with pytest.raises(UserError, match="--output is needed: the encoder 'nano' lies in the installed package"):
        probe.main(arguments(run, small_dataset, tmp_path, encoder=("nano",), seeds=1, output=None))
    assert not (FOLDER / "nano/probes").exists()


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


def test_the_cache_keeps_what_was_used_last(tmp_path, monkeypatch):
    cache = feature_cache.FeatureCache(tmp_path)
    monkeypatch.setenv("AJEPA_CACHE_GB", "2.5e-6")
    for age, name in enumerate(["old", "used", "new"]):
        assert cache._write(tmp_path / name, [bytes(1000)])
        if (tmp_path / name).exists():
            os.utime(tmp_path / name, (1e9 + age, 1e9 + age))
        if name == "used":
            os.utime(tmp_path / "old", (2e9, 2e9))  # read since
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert cache._write(tmp_path / "large", [bytes(10_000)])  # itself is kept
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_other_poolings_have_another_file(run, small_dataset, tmp_path, monkeypatch):
    cache, encoder = feature_cache.FeatureCache(tmp_path), load_encoder(run.output)
    before = cache._path(encoder, small_dataset, None, "pooled", "x")
    monkeypatch.setattr(feature_cache, "POOLINGS", (*feature_cache.POOLINGS, "median"))
    assert cache._path(encoder, small_dataset, None, "pooled", "x") != before


@pytest.fixture
def split_dataset(small_dataset, build_dataset, tmp_path):
    """The first 20 clips of the small dataset, with one test split in place of five folds."""
    clips = [
        {"clip_id": f"clip{i:02d}", "uri": str(Path(small_dataset.path).parent / f"clip{i:02d}.wav"), "labels": [i % 4],
         "split": "test" if i < 4 else "train"}
        for i in range(20)
    ]  # fmt: skip
    return build_dataset(
        tmp_path / "split", clips, shard_size=20, front_end=small_dataset.front_end,
        label_names=small_dataset.label_names,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"combine": "weighted", "layers": "2,4"}, {"pooling": ("attentive",)}])
def test_layers_are_weighted_and_patches_attended_to(run, split_dataset, tmp_path, changes, monkeypatch):
    monkeypatch.setattr(heads, "CHECKS", 5)  # nothing is to be learned here
    rows = probe.main(arguments(run, split_dataset, tmp_path, protocol="linear", seeds=1, **changes))
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
    ],
)
def test_mistakes_are_named(run, small_dataset, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        probe.main(arguments(run, small_dataset, tmp_path, **changes))
